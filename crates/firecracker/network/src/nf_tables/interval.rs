//! Sets of ranges, as the kernel keeps them: where each begins, and the first value behind it.

use super::field::Field;
use super::unknown;
use flames_error::Result;
use serde_json::Value;

/// A range's first and last value.
type Ends = (u128, u128);

/// An element of such a set: a value, and whether a range ends before it.
pub(super) type Edge = (Vec<u8>, bool);

/// Whether the elements need a set of ranges.
pub(super) fn are_ranges(elements: &[Value]) -> bool {
    elements.iter().any(|element| element.get("prefix").is_some() || element.get("range").is_some())
}

/// The edges of single values, prefixes and ranges, in order. What overlaps or touches becomes one.
pub(super) fn edges(field: &Field, elements: &[Value]) -> Result<Vec<Edge>> {
    let width = field.kind.length() * 8;
    let highest = if width >= 128 { u128::MAX } else { (1 << width) - 1 };
    let mut ranges =
        elements.iter().map(|element| ends(field, element, highest)).collect::<Result<Vec<_>>>()?;
    ranges.sort_unstable();
    let mut merged: Vec<Ends> = Vec::new();
    for (first, last) in ranges {
        match merged.last_mut() {
            Some((_, end)) if first <= end.saturating_add(1) => *end = last.max(*end),
            _ => merged.push((first, last)),
        }
    }
    let bytes = |number: u128| number.to_be_bytes()[16 - field.kind.length()..].to_vec();
    let mut edges = Vec::new();
    // As `nft` does: the values before the first range are told to be in none.
    if merged.first().is_some_and(|(first, _)| *first > 0) {
        edges.push((bytes(0), true));
    }
    for (first, last) in merged {
        edges.push((bytes(first), false));
        if last < highest {
            edges.push((bytes(last + 1), true));
        }
    }
    Ok(edges)
}

fn ends(field: &Field, element: &Value, highest: u128) -> Result<Ends> {
    let number = |value: &Value| {
        let bytes = field.kind.value(value)?;
        Ok(bytes.iter().fold(0, |number, byte| (number << 8) | u128::from(*byte)))
    };
    if let Some(prefix) = element.get("prefix") {
        let (address, length) = (prefix.get("addr"), prefix.get("len").and_then(Value::as_u64));
        let (Some(address), Some(length)) = (address, length.and_then(|length| u32::try_from(length).ok()))
        else {
            return Err(unknown("a prefix", element));
        };
        let first = number(address)?;
        let host_bits = highest.checked_shr(length).unwrap_or(0);
        return Ok((first & !host_bits, first | host_bits));
    }
    if let Some(Value::Array(range)) = element.get("range") {
        let [first, last] = range.as_slice() else { return Err(unknown("a range", element)) };
        return Ok((number(first)?, number(last)?));
    }
    number(element).map(|number| (number, number))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn edges_of(protocol: &str, name: &str, elements: &Value) -> Vec<(Vec<u8>, bool)> {
        let field = Field::of(&json!({ "payload": { "protocol": protocol, "field": name } })).unwrap();
        edges(&field, elements.as_array().unwrap()).unwrap()
    }

    #[test]
    fn ranges_are_told_by_their_edges_and_the_last_value_needs_no_end() {
        let prefix = |addr: &str, len: u8| json!({ "prefix": { "addr": addr, "len": len } });
        let elements = json!([prefix("224.0.0.0", 3), "169.254.169.254", prefix("10.0.0.0", 8)]);
        let expected = [
            ([0, 0, 0, 0], true),
            ([10, 0, 0, 0], false),
            ([11, 0, 0, 0], true),
            ([169, 254, 169, 254], false),
            ([169, 254, 169, 255], true),
            ([224, 0, 0, 0], false),
        ];
        let expected: Vec<_> = expected.into_iter().map(|(bytes, end)| (bytes.to_vec(), end)).collect();
        assert_eq!(edges_of("ip", "daddr", &elements), expected);
    }

    #[test]
    fn what_touches_is_one_range_and_zero_may_begin_one() {
        let elements = json!([{ "range": [80, 90] }, 91, { "range": [0, 79] }]);
        assert_eq!(edges_of("th", "dport", &elements), [(vec![0, 0], false), (vec![0, 92], true)]);
        let elements = json!(["::", { "prefix": { "addr": "fe80::", "len": 10 } }]);
        let edges = edges_of("ip6", "saddr", &elements);
        assert_eq!(edges.len(), 4);
        assert_eq!(edges[0], (vec![0; 16], false));
        assert_eq!((edges[3].0[..2].to_vec(), edges[3].1), (vec![0xfe, 0xc0], true));
    }
}
