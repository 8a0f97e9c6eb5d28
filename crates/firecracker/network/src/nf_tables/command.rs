//! Changes: tables, chains, sets and their elements, rules.

use flames_error::Result;
use serde_json::Value;

use super::field::Kind;
use super::message::{Attributes, Batch, CREATE, EXCLUSIVE};
use super::{rule, text_of, unknown};

// Families (`NFPROTO_…`, linux/netfilter.h).
pub(super) const INET: u8 = 1;
pub(super) const NETDEV: u8 = 5;

// `enum nf_tables_msg_types`.
const NEW_TABLE: u16 = 0;
const DELETE_TABLE: u16 = 2;
const NEW_CHAIN: u16 = 3;
const DELETE_CHAIN: u16 = 5;
const DELETE_RULE: u16 = 8;
const NEW_SET: u16 = 9;
const DELETE_SET: u16 = 11;
const NEW_ELEMENT: u16 = 12;
const DELETE_ELEMENT: u16 = 14;

/// How elements are changed: the message, and its flags.
pub(super) type Way = (u16, u16);
pub(super) const ADD: Way = (NEW_ELEMENT, CREATE);
const CREATE_NEW: Way = (NEW_ELEMENT, CREATE | EXCLUSIVE);
const DELETE: Way = (DELETE_ELEMENT, 0);

/// What the kernel takes for a set without a name, before it gives it one.
pub(super) const WITHOUT_NAME: &str = "__set%d";

/// The most elements in one message, whose list is one attribute of at most 64 KiB.
const AT_ONCE: usize = 256;

/// The type of what verdict maps hold (`NFT_DATA_VERDICT`).
const VERDICT_TYPE: u32 = 0xffff_ff00;
/// What a verdict takes in a map (`struct nft_verdict` and its union, as libnftnl has it).
const VERDICT_LENGTH: u32 = 16;

/// One change, in the words of libnftables-json(5).
pub(super) fn encode(batch: &mut Batch, change: &Value) -> Result<()> {
    batch.changes += 1;
    let Some((verb, object)) = change.as_object().and_then(|object| object.iter().next()) else {
        return Err(unknown("a change", change));
    };
    let Some((kind, words)) = object.as_object().and_then(|object| object.iter().next()) else {
        return Err(unknown("a change", change));
    };
    match (verb.as_str(), kind.as_str()) {
        ("add", "rule") => return rule::add(batch, words),
        ("add", "chain") => return add_chain(batch, words),
        ("add", "set" | "map") => return add_named_set(batch, words),
        ("add", "element") => return change_elements(batch, ADD, words),
        ("create", "element") => return change_elements(batch, CREATE_NEW, words),
        ("delete", "element") => return change_elements(batch, DELETE, words),
        _ => {}
    }
    let family = family(words)?;
    let mut attributes = Attributes::default();
    if kind != "table" {
        attributes.text(1, text_of(words, "table")?);
    }
    let name = text_of(words, "name")?;
    match (verb.as_str(), kind.as_str()) {
        ("add", "table") => {
            attributes.text(1, name);
            batch.message(NEW_TABLE, CREATE, family, &attributes);
        }
        ("delete", "table") => {
            attributes.text(1, name);
            batch.message(DELETE_TABLE, 0, family, &attributes);
        }
        ("delete", "chain") => {
            attributes.text(3, name);
            batch.message(DELETE_CHAIN, 0, family, &attributes);
        }
        // All rules of the chain.
        ("flush", "chain") => {
            attributes.text(2, name);
            batch.message(DELETE_RULE, 0, family, &attributes);
        }
        ("delete", "set") => {
            attributes.text(2, name);
            batch.message(DELETE_SET, 0, family, &attributes);
        }
        _ => return Err(unknown("a change", change)),
    }
    Ok(())
}

pub(super) fn family(words: &Value) -> Result<u8> {
    match text_of(words, "family")? {
        "inet" => Ok(INET),
        "netdev" => Ok(NETDEV),
        _ => Err(unknown("a family", words)),
    }
}

fn add_chain(batch: &mut Batch, words: &Value) -> Result<()> {
    let family = family(words)?;
    let mut attributes = Attributes::default();
    attributes.text(1, text_of(words, "table")?);
    attributes.text(3, text_of(words, "name")?);
    if let Some(hook) = words.get("hook") {
        // `enum nf_inet_hooks`, `enum nf_dev_hooks`.
        let number = match (hook.as_str(), family) {
            (Some("prerouting"), INET) | (Some("ingress"), NETDEV) => 0,
            (Some("input"), INET) => 1,
            (Some("forward"), INET) => 2,
            (Some("output"), INET) => 3,
            (Some("postrouting"), INET) => 4,
            _ => return Err(unknown("a hook", words)),
        };
        let priority = words.get("prio").and_then(Value::as_i64).and_then(|prio| i32::try_from(prio).ok());
        let priority = priority.ok_or_else(|| unknown("a priority", words))?;
        let device = words.get("dev").and_then(Value::as_str);
        attributes.nested(4, |attributes| {
            attributes.number(1, number);
            attributes.bytes(2, &priority.to_be_bytes());
            if let Some(device) = device {
                attributes.text(3, device);
            }
        });
        // `NF_DROP`, `NF_ACCEPT`.
        let policy = match text_of(words, "policy")? {
            "drop" => 0,
            "accept" => 1,
            _ => return Err(unknown("a policy", words)),
        };
        attributes.number(5, policy);
        attributes.text(7, text_of(words, "type")?);
    }
    batch.message(NEW_CHAIN, CREATE, family, &attributes);
    Ok(())
}

/// What a set is made with.
#[derive(Debug)]
pub(super) struct SetShape {
    pub(super) flags: u32,
    pub(super) key_type: u32,
    pub(super) key_length: usize,
    pub(super) size: Option<u32>,
    pub(super) is_map: bool,
    /// Of the key, in the words of nft (`enum byteorder`): 0 of several, 1 the host's, 2 that of packets.
    pub(super) byte_order: u32,
}

/// Returns the set's id in the batch.
pub(super) fn add_set(batch: &mut Batch, family: u8, table: &str, name: &str, shape: &SetShape) -> u32 {
    let id = batch.set_id();
    let mut attributes = Attributes::default();
    attributes.text(1, table);
    attributes.text(2, name);
    attributes.number(3, shape.flags);
    attributes.number(4, shape.key_type);
    attributes.number(5, u32::try_from(shape.key_length).unwrap_or_default());
    if shape.is_map {
        attributes.number(6, VERDICT_TYPE);
        attributes.number(7, VERDICT_LENGTH);
    }
    if let Some(size) = shape.size {
        attributes.nested(9, |description| description.number(1, size));
    }
    attributes.number(10, id);
    // `NFTNL_UDATA_SET_KEYBYTEORDER`: without it nft reads names backwards. The kernel only keeps it.
    let mut order = vec![0, 4];
    order.extend(shape.byte_order.to_ne_bytes());
    attributes.bytes(13, &order);
    batch.message(NEW_SET, CREATE, family, &attributes);
    id
}

fn add_named_set(batch: &mut Batch, words: &Value) -> Result<()> {
    let types: Vec<&Value> = match words.get("type") {
        Some(Value::Array(types)) => types.iter().collect(),
        Some(one) => vec![one],
        None => return Err(unknown("a set", words)),
    };
    let (mut key_type, mut key_length, mut byte_order) = (0, 0, None);
    for name in types {
        let kind = name.as_str().and_then(Kind::of_type).ok_or_else(|| unknown("a set's type", words))?;
        // Concatenated types have six bits each (`TYPE_BITS` of nft's datatype.h), their values whole registers of four bytes.
        key_type = (key_type << 6) | kind.type_number();
        key_length += kind.length().next_multiple_of(4);
        byte_order = Some(byte_order.map_or(kind.byte_order(), |_| 0));
    }
    let flags = words.get("flags").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let is_map = match words.get("map").map(|map| map.as_str()) {
        None => false,
        Some(Some("verdict")) => true,
        Some(_) => return Err(unknown("a map", words)),
    };
    let shape = SetShape {
        // `NFT_SET_TIMEOUT`, `NFT_SET_MAP`.
        flags: match flags {
            [] => 0,
            [flag] if flag == "timeout" => 0x10,
            _ => return Err(unknown("a set's flags", words)),
        } | if is_map { 0x8 } else { 0 },
        key_type,
        key_length,
        size: words.get("size").and_then(Value::as_u64).and_then(|size| u32::try_from(size).ok()),
        is_map,
        byte_order: byte_order.unwrap_or_default(),
    };
    add_set(batch, family(words)?, text_of(words, "table")?, text_of(words, "name")?, &shape);
    Ok(())
}

fn change_elements(batch: &mut Batch, way: Way, words: &Value) -> Result<()> {
    let listed = words.get("elem").and_then(Value::as_array).ok_or_else(|| unknown("elements", words))?;
    let encoded = listed.iter().map(element).collect::<Result<Vec<_>>>()?;
    let set = (text_of(words, "table")?, text_of(words, "name")?, None);
    elements(batch, way, family(words)?, set, encoded.into_iter());
    Ok(())
}

/// Elements of the set with this table, name and, in the batch, id.
pub(super) fn elements(
    batch: &mut Batch,
    (message, flags): Way,
    family: u8,
    (table, set, id): (&str, &str, Option<u32>),
    elements: impl Iterator<Item = Attributes>,
) {
    let mut elements = elements.peekable();
    while elements.peek().is_some() {
        let mut attributes = Attributes::default();
        attributes.text(1, table);
        attributes.text(2, set);
        if let Some(id) = id {
            attributes.number(4, id);
        }
        attributes.nested(3, |list| {
            for element in elements.by_ref().take(AT_ONCE) {
                list.append(1, &element);
            }
        });
        batch.message(message, flags, family, &attributes);
    }
}

fn element(words: &Value) -> Result<Attributes> {
    let mut attributes = Attributes::default();
    // A map's: its key, and where it leads.
    if let Value::Array(pair) = words {
        let [key, verdict] = pair.as_slice() else { return Err(unknown("an element", words)) };
        let key = key_of(key)?;
        attributes.nested(1, |data| data.bytes(1, &key));
        let verdict = jump(verdict)?;
        attributes.nested(2, |data| data.append(2, &verdict));
        return Ok(attributes);
    }
    let detailed = words.get("elem");
    let value = detailed.map_or(Some(words), |element| element.get("val"));
    let key = key_of(value.ok_or_else(|| unknown("an element", words))?)?;
    attributes.nested(1, |data| data.bytes(1, &key));
    let Some(detailed) = detailed else { return Ok(attributes) };
    if let Some(seconds) = detailed.get("timeout") {
        let seconds = seconds.as_u64().ok_or_else(|| unknown("an element", words))?;
        attributes.long(4, seconds.saturating_mul(1000));
    }
    if let Some(comment) = detailed.get("comment") {
        let comment =
            comment.as_str().filter(|text| text.len() < 128).ok_or_else(|| unknown("an element", words))?;
        // `NFTNL_UDATA_SET_ELEM_COMMENT` with its length (libnftnl's udata.h): what nft shows as a comment.
        let mut data = vec![0, u8::try_from(comment.len() + 1).unwrap_or(u8::MAX)];
        data.extend(comment.as_bytes());
        data.push(0);
        attributes.bytes(6, &data);
    }
    Ok(attributes)
}

fn key_of(words: &Value) -> Result<Vec<u8>> {
    let parts = match words.get("concat") {
        Some(Value::Array(parts)) => parts.as_slice(),
        _ => std::slice::from_ref(words),
    };
    let mut key = Vec::new();
    for part in parts {
        key.extend(Kind::of_key(part).value(part)?);
        key.resize(key.len().next_multiple_of(4), 0);
    }
    Ok(key)
}

/// A verdict that leads to another chain.
pub(super) fn jump(words: &Value) -> Result<Attributes> {
    // `NFT_JUMP`, `NFT_GOTO` (`enum nft_verdicts`).
    let ways = [("jump", -3_i32), ("goto", -4)];
    let way = ways.iter().find_map(|(name, code)| Some((words.get(name)?, code)));
    let (to, code) = way.ok_or_else(|| unknown("a verdict", words))?;
    let mut verdict = Attributes::default();
    verdict.bytes(1, &code.to_be_bytes());
    verdict.text(2, text_of(to, "target")?);
    Ok(verdict)
}
