//! What a machine is told.

use std::net::IpAddr;

use super::message::{A, AAAA, CNAME, Data, Query, Response, push_edns, rcode};
use super::reader::{HEADER, Name};

/// The most addresses that a machine is told, and that become reachable, by one answer.
const MOST_ADDRESSES: usize = 32;
/// The longest chain of aliases.
const MOST_ALIASES: usize = 16;
/// The largest answer over UDP: what fits into the smallest packet that IPv6 carries (DNS flag day 2020).
pub(crate) const LARGEST_DATAGRAM: u16 = 1232;
/// The largest answer over UDP to who does not speak EDNS (RFC 1035, section 4.2.1).
const LARGEST_WITHOUT_EDNS: u16 = 512;

/// How a machine's answer travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transport {
    Udp,
    Tcp,
}

impl Transport {
    fn largest(self, query: &Query) -> usize {
        match (self, query.edns) {
            (Self::Tcp, _) => usize::from(u16::MAX),
            (Self::Udp, Some(size)) => usize::from(size.clamp(LARGEST_WITHOUT_EDNS, LARGEST_DATAGRAM)),
            (Self::Udp, None) => usize::from(LARGEST_WITHOUT_EDNS),
        }
    }
}

/// The addresses of the name that was asked, by way of its aliases.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Addresses {
    /// From each name to the next.
    aliases: Vec<(Name, Name)>,
    /// Whose the addresses are.
    owner: Name,
    pub(crate) addresses: Vec<IpAddr>,
    /// The shortest TTL on the way, in seconds.
    pub(crate) ttl: u32,
}

impl Addresses {
    /// Follows the aliases inside of the answer, and takes the addresses at their end that `may` holds for. Whatever else the
    /// answer holds is left. No addresses when the aliases go around or are too many.
    pub(crate) fn find(query: &Query, response: &Response, may: impl Fn(IpAddr) -> bool) -> Self {
        let mut found =
            Self { aliases: Vec::new(), owner: query.name.clone(), addresses: Vec::new(), ttl: u32::MAX };
        while let Some((target, ttl)) = response.answers.iter().find_map(|record| match &record.data {
            Data::Alias(target) if record.owner == found.owner => Some((target, record.ttl)),
            _ => None,
        }) {
            if found.aliases.len() == MOST_ALIASES {
                return Self {
                    aliases: Vec::new(),
                    owner: query.name.clone(),
                    addresses: Vec::new(),
                    ttl: 0,
                };
            }
            found.aliases.push((std::mem::replace(&mut found.owner, target.clone()), target.clone()));
            found.ttl = found.ttl.min(ttl);
        }
        for record in &response.answers {
            let Data::Address(address) = record.data else { continue };
            let asked = if address.is_ipv4() { A } else { AAAA };
            let wanted = record.owner == found.owner && asked == query.kind && may(address);
            if wanted && !found.addresses.contains(&address) && found.addresses.len() < MOST_ADDRESSES {
                found.addresses.push(address);
                found.ttl = found.ttl.min(record.ttl);
            }
        }
        found
    }

    /// The answer with every TTL of `ttl` seconds; one that says that it did not fit when it does not.
    pub(crate) fn encode(&self, query: &Query, ttl: u32, transport: Transport) -> Vec<u8> {
        let mut bytes = head(query, rcode::NO_ERROR);
        let mut count: u16 = 0;
        let mut record = |bytes: &mut Vec<u8>, owner: &Name, kind: u16, data: &[u8]| {
            if *owner == query.name {
                // Where the question is.
                bytes.extend([0xc0, 12]);
            } else {
                bytes.extend(owner.wire());
            }
            bytes.extend(kind.to_be_bytes());
            bytes.extend([0, 1]);
            bytes.extend(ttl.to_be_bytes());
            bytes.extend(u16::try_from(data.len()).unwrap_or_default().to_be_bytes());
            bytes.extend(data);
            count += 1;
        };
        for (owner, target) in &self.aliases {
            record(&mut bytes, owner, CNAME, target.wire());
        }
        for address in &self.addresses {
            match address {
                IpAddr::V4(address) => record(&mut bytes, &self.owner, A, &address.octets()),
                IpAddr::V6(address) => record(&mut bytes, &self.owner, AAAA, &address.octets()),
            }
        }
        set_u16(&mut bytes, 6, count);
        finish(bytes, query, transport)
    }
}

/// An answer without records.
pub(crate) fn empty(query: &Query, code: u8) -> Vec<u8> {
    let bytes = head(query, code);
    finish(bytes, query, Transport::Tcp)
}

/// An answer to what could not be read as a query.
pub(crate) fn unreadable(id: u16, code: u8) -> Vec<u8> {
    let mut bytes = id.to_be_bytes().to_vec();
    bytes.extend([0x80, 0x80 | code]);
    bytes.resize(HEADER, 0);
    bytes
}

/// The resolver's answer as it is, up to the end of its answers; none when it holds an address, which nobody has judged.
pub(crate) fn passed_on(query: &Query, response: &Response, transport: Transport) -> Option<Vec<u8>> {
    if response.answers.iter().any(|record| matches!(record.data, Data::Address(_))) {
        return None;
    }
    let mut bytes = response.through_answers.clone();
    let answers = bytes.get(6..8)?.to_vec();
    let head = head(query, response.code);
    // Names in the answers may point into the question: it has the same length in both, only its letters' case may differ.
    bytes.get_mut(..head.len())?.copy_from_slice(&head);
    bytes.get_mut(6..8)?.copy_from_slice(&answers);
    Some(finish(bytes, query, transport))
}

/// The header and the question.
fn head(query: &Query, code: u8) -> Vec<u8> {
    let mut bytes = query.id.to_be_bytes().to_vec();
    // An answer; recursion as desired; recursion available.
    bytes.extend([0x80 | u8::from(query.recursion_desired), 0x80 | code]);
    for count in [1_u16, 0, 0, 0] {
        bytes.extend(count.to_be_bytes());
    }
    bytes.extend(&query.question);
    bytes
}

fn finish(mut bytes: Vec<u8>, query: &Query, transport: Transport) -> Vec<u8> {
    const EDNS: usize = 11;
    if bytes.len() + EDNS > transport.largest(query) {
        bytes = head(query, rcode::NO_ERROR);
        if let Some(flags) = bytes.get_mut(2) {
            *flags |= 0x02;
        }
    }
    if query.edns.is_some() {
        push_edns(&mut bytes, LARGEST_DATAGRAM);
        set_u16(&mut bytes, 10, 1);
    }
    bytes
}

fn set_u16(bytes: &mut [u8], at: usize, value: u16) {
    if let Some(place) = bytes.get_mut(at..at + 2) {
        place.copy_from_slice(&value.to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::super::message::tests::{push_name, query, response};
    use super::*;

    fn alias(target: &str) -> Vec<u8> {
        let mut wire = Vec::new();
        push_name(&mut wire, target);
        wire
    }

    fn exchange(name: &str, records: &[(&str, u16, Vec<u8>)]) -> (Query, Response) {
        let asked = query(name, A);
        let read = Query::read(&asked).unwrap();
        let answer = Response::read(&response(&asked, records), 0x1234, &read).unwrap();
        (read, answer)
    }

    fn found(name: &str, records: &[(&str, u16, Vec<u8>)]) -> Vec<String> {
        let (query, response) = exchange(name, records);
        Addresses::find(&query, &response, |_| true).addresses.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn only_addresses_at_the_end_of_the_names_own_aliases_are_taken() {
        let (one, two, evil) = (vec![198, 51, 100, 1], vec![198, 51, 100, 2], vec![198, 51, 100, 66]);
        let records = [
            ("other.com", A, evil.clone()),
            ("b.com", A, one),
            ("c.com", A, two),
            ("a.com", CNAME, alias("b.com")),
            ("b.com", CNAME, alias("c.com")),
            ("a.com", A, evil),
        ];
        assert_eq!(found("a.com", &records), ["198.51.100.2"]);
    }

    #[test]
    fn aliases_that_go_around_lead_nowhere() {
        let records = [
            ("a.com", CNAME, alias("b.com")),
            ("b.com", CNAME, alias("a.com")),
            ("a.com", A, vec![1, 2, 3, 4]),
        ];
        assert_eq!(found("a.com", &records), Vec::<String>::new());
    }

    #[test]
    fn what_a_machine_is_told_reads_as_an_answer_to_its_question() {
        let (query, answer) =
            exchange("A.com", &[("a.com", CNAME, alias("b.com")), ("b.com", A, vec![198, 51, 100, 2])]);
        let told = Addresses::find(&query, &answer, |_| true);
        assert_eq!(told.ttl, 60);
        let bytes = told.encode(&query, 17, Transport::Udp);
        let again = Response::read(&bytes, 0x1234, &query).unwrap();
        assert_eq!(again.answers.len(), 2);
        assert!(again.answers.iter().all(|record| record.ttl == 17));
        assert_eq!(&bytes[12..12 + query.question.len()], query.question, "the question's own letters");
    }

    #[test]
    fn an_answer_that_does_not_fit_says_so_and_fits_over_tcp() {
        let records: Vec<(&str, u16, Vec<u8>)> =
            (0..40).map(|last| ("a.com", A, vec![198, 51, 100, last])).collect();
        let (mut query, answer) = exchange("a.com", &records);
        let told = Addresses::find(&query, &answer, |_| true);
        assert_eq!(told.addresses.len(), MOST_ADDRESSES);
        let short = Response::read(&told.encode(&query, 1, Transport::Udp), 0x1234, &query).unwrap();
        assert!(short.truncated && short.answers.is_empty());
        query.edns = Some(65_535);
        let bytes = told.encode(&query, 1, Transport::Udp);
        assert!(bytes.len() <= usize::from(LARGEST_DATAGRAM));
        assert_eq!(Response::read(&bytes, 0x1234, &query).unwrap().answers.len(), MOST_ADDRESSES);
        let over_tcp = Response::read(&told.encode(&query, 1, Transport::Tcp), 0x1234, &query).unwrap();
        assert_eq!(over_tcp.answers.len(), MOST_ADDRESSES);
    }

    #[test]
    fn another_type_is_passed_on_unless_it_smuggles_an_address() {
        let asked = query("a.com", 16);
        let read = Query::read(&asked).unwrap();
        let mut bytes = response(&asked, &[("a.com", 16, vec![1, b'x'])]);
        // An additional address, which nobody has judged.
        bytes[11] = 1;
        push_name(&mut bytes, "a.com");
        bytes.extend([0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 10, 0, 0, 1]);
        let answer = Response::read(&bytes, 0x1234, &read).unwrap();
        let passed = passed_on(&read, &answer, Transport::Udp).unwrap();
        assert!(!passed.ends_with(&[10, 0, 0, 1]) && passed[10..12] == [0, 0]);
        assert_eq!(Response::read(&passed, 0x1234, &read).unwrap().answers.len(), 1);
        let smuggling = response(&asked, &[("a.com", A, vec![10, 0, 0, 1])]);
        let smuggling = Response::read(&smuggling, 0x1234, &read).unwrap();
        assert_eq!(passed_on(&read, &smuggling, Transport::Udp), None);
    }
}
