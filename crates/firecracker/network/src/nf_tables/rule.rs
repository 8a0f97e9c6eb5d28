//! One rule: its expressions, and the sets without a name that it looks into.

use flames_error::Result;
use serde_json::Value;

use super::command::{self, INET, NETDEV, SetShape};
use super::field::{Field, Kind, Need};
use super::interval::{are_ranges, edges};
use super::message::{APPEND, Attributes, Batch, CREATE};
use super::{text_of, unknown};

/// `NFT_MSG_NEWRULE`.
const NEW_RULE: u16 = 6;
/// `NFTA_LIST_ELEM`.
const ELEMENT: u16 = 1;

// Registers (`enum nft_registers`): the verdict's, and two of 16 bytes each, which are next to each other.
const VERDICT: u32 = 0;
const FIRST: u32 = 1;
const SECOND: u32 = 2;

// `enum nft_cmp_ops`.
const EQUAL: u32 = 0;
const NOT_EQUAL: u32 = 1;

/// Adds a rule at the end of its chain.
pub(super) fn add(batch: &mut Batch, words: &Value) -> Result<()> {
    let family = command::family(words)?;
    let (table, chain) = (text_of(words, "table")?, text_of(words, "chain")?);
    let mut rule = Rule { batch, family, table, expressions: Attributes::default(), known: Vec::new() };
    for statement in words.get("expr").and_then(Value::as_array).ok_or_else(|| unknown("a rule", words))? {
        rule.statement(statement)?;
    }
    let mut attributes = Attributes::default();
    attributes.text(1, table);
    attributes.text(2, chain);
    attributes.append(4, &rule.expressions);
    batch.message(NEW_RULE, CREATE | APPEND, family, &attributes);
    Ok(())
}

struct Rule<'a> {
    batch: &'a mut Batch,
    family: u8,
    table: &'a str,
    expressions: Attributes,
    /// What the rule has made sure of.
    known: Vec<Need>,
}

impl Rule<'_> {
    fn expression(&mut self, name: &str, data: &Attributes) {
        self.expressions.nested(ELEMENT, |expression| {
            expression.text(1, name);
            expression.append(2, data);
        });
    }

    fn statement(&mut self, words: &Value) -> Result<()> {
        let Some((name, what)) = words.as_object().and_then(|object| object.iter().next()) else {
            return Err(unknown("a statement", words));
        };
        match name.as_str() {
            "match" => self.matches(what)?,
            "accept" => self.verdict(Some(1), what)?,
            "drop" => self.verdict(Some(0), what)?,
            "goto" | "jump" => self.verdict(None, words)?,
            "vmap" => {
                let field = Field::of(what.get("key").unwrap_or(what))?;
                self.load(&field, FIRST);
                let mut data = Attributes::default();
                data.text(1, named_set(text_of(what, "data")?).ok_or_else(|| unknown("a map", what))?);
                data.number(2, FIRST);
                data.number(3, VERDICT);
                self.expression("lookup", &data);
            }
            "reject" => {
                let mut data = Attributes::default();
                // `NFT_REJECT_ICMPX_UNREACH` with `NFT_REJECT_ICMPX_ADMIN_PROHIBITED`.
                data.number(1, 2);
                data.bytes(2, &[3]);
                self.expression("reject", &data);
            }
            "limit" => {
                let figure =
                    |name| what.get(name).and_then(Value::as_u64).ok_or_else(|| unknown("a limit", what));
                let mut data = Attributes::default();
                data.long(1, figure("rate")?);
                // Seconds.
                data.long(2, 1);
                data.number(3, u32::try_from(figure("burst")?).unwrap_or(u32::MAX));
                // Packets, and a rate that is not to be exceeded.
                data.number(4, 0);
                data.number(5, 0);
                self.expression("limit", &data);
            }
            "ct count" => {
                let most = what.get("val").and_then(Value::as_u64).and_then(|most| u32::try_from(most).ok());
                let mut data = Attributes::default();
                data.number(1, most.ok_or_else(|| unknown("a count", what))?);
                data.number(2, u32::from(what.get("inv").and_then(Value::as_bool).unwrap_or_default()));
                self.expression("connlimit", &data);
            }
            "mangle" => {
                let field = Field::of(what.get("key").unwrap_or(what))?;
                if field.kind != Kind::Mark {
                    return Err(unknown("a change of a packet", what));
                }
                let value = field.kind.value(what.get("value").unwrap_or(&Value::Null))?;
                let mut data = Attributes::default();
                data.number(1, FIRST);
                data.nested(2, |data| data.bytes(1, &value));
                self.expression("immediate", &data);
                let mut data = Attributes::default();
                // `NFT_CT_MARK`.
                data.number(2, 3);
                data.number(4, FIRST);
                self.expression("ct", &data);
            }
            "masquerade" => self.expression("masq", &Attributes::default()),
            _ => return Err(unknown("a statement", words)),
        }
        Ok(())
    }

    fn verdict(&mut self, code: Option<u32>, words: &Value) -> Result<()> {
        let verdict = match code {
            Some(code) => {
                let mut verdict = Attributes::default();
                verdict.number(1, code);
                verdict
            }
            None => command::jump(words)?,
        };
        let mut data = Attributes::default();
        data.number(1, VERDICT);
        data.nested(2, |data| data.append(2, &verdict));
        self.expression("immediate", &data);
        Ok(())
    }

    fn load(&mut self, field: &Field, into: u32) {
        let (name, data) = field.load(into);
        self.expression(name, &data);
    }

    fn compare(&mut self, how: u32, value: &[u8]) {
        let mut data = Attributes::default();
        data.number(1, FIRST);
        data.number(2, how);
        data.nested(3, |data| data.bytes(1, value));
        self.expression("cmp", &data);
    }

    fn mask(&mut self, mask: &[u8]) {
        let mut data = Attributes::default();
        data.number(1, FIRST);
        data.number(2, FIRST);
        data.number(3, u32::try_from(mask.len()).unwrap_or_default());
        data.nested(4, |data| data.bytes(1, mask));
        data.nested(5, |data| data.bytes(1, &vec![0; mask.len()]));
        self.expression("bitwise", &data);
    }

    /// Makes sure of what the field needs, unless the rule has done so before.
    fn require(&mut self, needs: &[Need]) -> Result<()> {
        for need in needs {
            if self.known.contains(need) {
                continue;
            }
            // Keys of `enum nft_meta_keys`; EtherTypes and hardware types are IANA's, in the packet's order and the host's.
            let (key, value): (u32, Vec<u8>) = match (*need, self.family) {
                (Need::Ethernet, NETDEV) => (8, 1_u16.to_ne_bytes().to_vec()),
                (Need::Arp, NETDEV) => (1, 0x0806_u16.to_be_bytes().to_vec()),
                (Need::Ipv4, NETDEV) => (1, 0x0800_u16.to_be_bytes().to_vec()),
                (Need::Ipv6, NETDEV) => (1, 0x86dd_u16.to_be_bytes().to_vec()),
                (Need::Ipv4, INET) => (15, vec![2]),
                (Need::Ipv6, INET) => (15, vec![10]),
                (Need::Transport(number), _) => (16, vec![number]),
                _ => return Err(unknown("a field of this family", &Value::Null)),
            };
            let mut data = Attributes::default();
            data.number(1, FIRST);
            data.number(2, key);
            self.expression("meta", &data);
            self.compare(EQUAL, &value);
            self.known.push(*need);
        }
        Ok(())
    }

    fn matches(&mut self, words: &Value) -> Result<()> {
        let (Some(left), Some(right)) = (words.get("left"), words.get("right")) else {
            return Err(unknown("a match", words));
        };
        let how = match text_of(words, "op")? {
            "==" | "in" => EQUAL,
            "!=" => NOT_EQUAL,
            _ => return Err(unknown("a match", words)),
        };
        if let Some(Value::Array(parts)) = left.get("concat") {
            let [first, second] = parts.as_slice() else { return Err(unknown("a concatenation", left)) };
            let (first, second) = (Field::of(first)?, Field::of(second)?);
            let set =
                right.as_str().and_then(named_set).filter(|_| first.kind.length() == 16 && how == EQUAL);
            let set = set.ok_or_else(|| unknown("a concatenation", words))?;
            self.require(first.needs)?;
            self.require(second.needs)?;
            self.load(&first, FIRST);
            self.load(&second, SECOND);
            self.look_up(set, None);
            return Ok(());
        }
        let field = Field::of(left)?;
        self.require(field.needs)?;
        // A set of one value needs no set, as nft has it.
        let right = match right.get("set").and_then(Value::as_array).map(Vec::as_slice) {
            Some([only]) if only.get("range").is_none() => only,
            _ => right,
        };
        if let Some(set) = right.as_str().and_then(named_set) {
            self.load(&field, FIRST);
            self.look_up(set, None);
        } else if let Some(Value::Array(elements)) = right.get("set") {
            let id = self.set(&field, elements)?;
            self.load(&field, FIRST);
            self.look_up(command::WITHOUT_NAME, Some(id));
        } else if field.kind == Kind::ConnectionState {
            // Any of the states.
            let bits = field.kind.value(right)?;
            self.load(&field, FIRST);
            self.mask(&bits);
            self.compare(NOT_EQUAL, &[0; 4]);
            return Ok(());
        } else if let Some(prefix) = right.get("prefix") {
            let address = field.kind.value(prefix.get("addr").unwrap_or(&Value::Null))?;
            let length =
                prefix.get("len").and_then(Value::as_u64).and_then(|length| usize::try_from(length).ok());
            let length = length.ok_or_else(|| unknown("a prefix", prefix))?;
            let mask: Vec<u8> = (0..address.len())
                .map(|byte| match length.saturating_sub(byte * 8).min(8) {
                    0 => 0,
                    bits => u8::MAX << (8 - bits),
                })
                .collect();
            let address: Vec<u8> = address.iter().zip(&mask).map(|(byte, mask)| byte & mask).collect();
            self.load(&field, FIRST);
            if length < address.len() * 8 {
                self.mask(&mask);
            }
            self.compare(how, &address);
            return Ok(());
        } else {
            let value = field.kind.value(right)?;
            self.load(&field, FIRST);
            self.compare(how, &value);
            self.learn(&field, how, &value);
            return Ok(());
        }
        if how == EQUAL { Ok(()) } else { Err(unknown("not being in a set", words)) }
    }

    /// What an explicit comparison makes sure of.
    fn learn(&mut self, field: &Field, how: u32, value: &[u8]) {
        let known = match (field.kind, value) {
            (Kind::NetworkProtocol, [2]) => Need::Ipv4,
            (Kind::NetworkProtocol, [10]) => Need::Ipv6,
            (Kind::TransportProtocol, [number]) => Need::Transport(*number),
            _ => return,
        };
        if how == EQUAL {
            self.known.push(known);
        }
    }

    fn look_up(&mut self, set: &str, id: Option<u32>) {
        let mut data = Attributes::default();
        data.text(1, set);
        data.number(2, FIRST);
        if let Some(id) = id {
            data.number(4, id);
        }
        self.expression("lookup", &data);
    }

    /// Makes a set without a name, for this rule alone.
    fn set(&mut self, field: &Field, elements: &[Value]) -> Result<u32> {
        let is_of_ranges = are_ranges(elements);
        let edges = if is_of_ranges {
            edges(field, elements)?
        } else {
            let value = |element| field.kind.value(element).map(|value| (value, false));
            elements.iter().map(value).collect::<Result<Vec<_>>>()?
        };
        let shape = SetShape {
            // `NFT_SET_ANONYMOUS`, `NFT_SET_CONSTANT`, `NFT_SET_INTERVAL`.
            flags: if is_of_ranges { 0x7 } else { 0x3 },
            key_type: field.kind.type_number(),
            key_length: field.kind.length(),
            size: u32::try_from(edges.len()).ok(),
            is_map: false,
            byte_order: field.kind.byte_order(),
        };
        let id = command::add_set(self.batch, self.family, self.table, command::WITHOUT_NAME, &shape);
        let elements = edges.into_iter().map(|(value, is_end)| {
            let mut element = Attributes::default();
            element.nested(1, |key| key.bytes(1, &value));
            if is_end {
                // `NFT_SET_ELEM_INTERVAL_END`.
                element.number(3, 1);
            }
            element
        });
        command::elements(
            self.batch,
            command::ADD,
            self.family,
            (self.table, command::WITHOUT_NAME, Some(id)),
            elements,
        );
        Ok(id)
    }
}

/// The set that is named with `@`.
fn named_set(text: &str) -> Option<&str> {
    text.strip_prefix('@')
}
