//! Objects that are objects. What serde derives for a struct takes an array too, as its fields in their order in the code: an order that is
//! nobody's contract, and that a field more would change.

use std::fmt;

use serde::de::{
    DeserializeSeed, Deserializer, EnumAccess, Error, MapAccess, SeqAccess, Unexpected, VariantAccess,
    Visitor,
};

/// A deserializer that refuses an array where a struct is read, wherever in the input that is.
pub(crate) struct Objects<D>(pub(crate) D);

macro_rules! deserialize {
    ($($method:ident($($argument:ident: $type:ty),*) => $wrapper:ident;)+) => {
        $(
            fn $method<V: Visitor<'de>>(self, $($argument: $type,)* visitor: V) -> Result<V::Value, D::Error> {
                self.0.$method($($argument,)* $wrapper(visitor))
            }
        )+
    };
}

impl<'de, D: Deserializer<'de>> Deserializer<'de> for Objects<D> {
    type Error = D::Error;

    deserialize! {
        deserialize_any() => Any;
        deserialize_bool() => Any;
        deserialize_i8() => Any;
        deserialize_i16() => Any;
        deserialize_i32() => Any;
        deserialize_i64() => Any;
        deserialize_i128() => Any;
        deserialize_u8() => Any;
        deserialize_u16() => Any;
        deserialize_u32() => Any;
        deserialize_u64() => Any;
        deserialize_u128() => Any;
        deserialize_f32() => Any;
        deserialize_f64() => Any;
        deserialize_char() => Any;
        deserialize_str() => Any;
        deserialize_string() => Any;
        deserialize_bytes() => Any;
        deserialize_byte_buf() => Any;
        deserialize_option() => Any;
        deserialize_unit() => Any;
        deserialize_unit_struct(name: &'static str) => Any;
        deserialize_newtype_struct(name: &'static str) => Any;
        deserialize_seq() => Any;
        deserialize_tuple(length: usize) => Any;
        deserialize_tuple_struct(name: &'static str, length: usize) => Any;
        deserialize_map() => Any;
        deserialize_struct(name: &'static str, fields: &'static [&'static str]) => Object;
        deserialize_enum(name: &'static str, variants: &'static [&'static str]) => Any;
        deserialize_identifier() => Any;
        deserialize_ignored_any() => Any;
    }

    fn is_human_readable(&self) -> bool {
        self.0.is_human_readable()
    }
}

/// What reads any value, and meets objects within it.
struct Any<V>(V);

/// What reads an object.
struct Object<V>(V);

macro_rules! visit {
    ($($method:ident($type:ty);)+) => {
        $(
            fn $method<E: Error>(self, value: $type) -> Result<V::Value, E> {
                self.0.$method(value)
            }
        )+
    };
}

impl<'de, V: Visitor<'de>> Visitor<'de> for Any<V> {
    type Value = V::Value;

    visit! {
        visit_bool(bool);
        visit_i64(i64);
        visit_i128(i128);
        visit_u64(u64);
        visit_u128(u128);
        visit_f64(f64);
        visit_str(&str);
        visit_borrowed_str(&'de str);
        visit_string(String);
        visit_bytes(&[u8]);
        visit_borrowed_bytes(&'de [u8]);
        visit_byte_buf(Vec<u8>);
    }

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.expecting(formatter)
    }

    fn visit_none<E: Error>(self) -> Result<V::Value, E> {
        self.0.visit_none()
    }

    fn visit_unit<E: Error>(self) -> Result<V::Value, E> {
        self.0.visit_unit()
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<V::Value, D::Error> {
        self.0.visit_some(Objects(deserializer))
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, deserializer: D) -> Result<V::Value, D::Error> {
        self.0.visit_newtype_struct(Objects(deserializer))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, items: A) -> Result<V::Value, A::Error> {
        self.0.visit_seq(Within(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, entries: A) -> Result<V::Value, A::Error> {
        self.0.visit_map(Within(entries))
    }

    fn visit_enum<A: EnumAccess<'de>>(self, data: A) -> Result<V::Value, A::Error> {
        self.0.visit_enum(Within(data))
    }
}

/// JSON gives a struct's visitor a map or an array; what else there is, is refused by that visitor's own words.
impl<'de, V: Visitor<'de>> Visitor<'de> for Object<V> {
    type Value = V::Value;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.expecting(formatter)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, _: A) -> Result<V::Value, A::Error> {
        Err(A::Error::invalid_type(Unexpected::Seq, &self))
    }

    fn visit_map<A: MapAccess<'de>>(self, entries: A) -> Result<V::Value, A::Error> {
        self.0.visit_map(Within(entries))
    }
}

/// What is within a value, and read in the same way.
struct Within<T>(T);

impl<'de, S: DeserializeSeed<'de>> DeserializeSeed<'de> for Within<S> {
    type Value = S::Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<S::Value, D::Error> {
        self.0.deserialize(Objects(deserializer))
    }
}

impl<'de, A: SeqAccess<'de>> SeqAccess<'de> for Within<A> {
    type Error = A::Error;

    fn next_element_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, A::Error> {
        self.0.next_element_seed(Within(seed))
    }

    fn size_hint(&self) -> Option<usize> {
        self.0.size_hint()
    }
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for Within<A> {
    type Error = A::Error;

    fn next_key_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, A::Error> {
        self.0.next_key_seed(seed)
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, A::Error> {
        self.0.next_value_seed(Within(seed))
    }

    fn size_hint(&self) -> Option<usize> {
        self.0.size_hint()
    }
}

impl<'de, A: EnumAccess<'de>> EnumAccess<'de> for Within<A> {
    type Error = A::Error;
    type Variant = Within<A::Variant>;

    fn variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<(S::Value, Self::Variant), A::Error> {
        self.0.variant_seed(seed).map(|(value, variant)| (value, Within(variant)))
    }
}

impl<'de, A: VariantAccess<'de>> VariantAccess<'de> for Within<A> {
    type Error = A::Error;

    fn unit_variant(self) -> Result<(), A::Error> {
        self.0.unit_variant()
    }

    fn newtype_variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<S::Value, A::Error> {
        self.0.newtype_variant_seed(Within(seed))
    }

    fn tuple_variant<V: Visitor<'de>>(self, length: usize, visitor: V) -> Result<V::Value, A::Error> {
        self.0.tuple_variant(length, Any(visitor))
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, A::Error> {
        self.0.struct_variant(fields, Object(visitor))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde::Deserialize;
    use serde_json::json;

    use super::*;

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(rename_all = "snake_case")]
    enum Kind {
        Plain,
        Sized { bytes: u64 },
        Held(Box<Inner>),
        Pair(Inner, u8),
    }

    #[derive(Debug, PartialEq, Deserialize)]
    struct Inner {
        number: u16,
        text: Option<String>,
    }

    #[derive(Debug, PartialEq, Deserialize)]
    struct Newtype(Inner);

    #[derive(Debug, Default, PartialEq, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Outer {
        list: Vec<Inner>,
        map: BTreeMap<String, Inner>,
        maybe: Option<Inner>,
        newtype: Option<Newtype>,
        kinds: Vec<Kind>,
        numbers: (i8, u64, f64),
        flag: bool,
        anything: serde_json::Value,
    }

    fn read(value: &serde_json::Value) -> Result<Outer, String> {
        let bytes = value.to_string();
        let mut deserializer = serde_json::Deserializer::from_str(&bytes);
        let read: Result<Outer, _> = serde_path_to_error::deserialize(Objects(&mut deserializer));
        read.map_err(|error| error.path().to_string())
    }

    #[test]
    fn all_that_is_no_array_in_an_objects_place_is_read_as_without_this() {
        let inner = json!({ "number": 1, "text": "a\n" });
        let value = json!({
            "list": [inner, { "number": 2 }], "map": { "k": inner }, "maybe": inner, "newtype": inner,
            "kinds": ["plain", { "sized": { "bytes": 7 } }, { "held": inner }, { "pair": [inner, 3] }],
            "numbers": [-1, u64::MAX, 0.5], "flag": true, "anything": { "a": [[1, null], {}] },
        });
        assert_eq!(read(&value).unwrap(), serde_json::from_value(value).unwrap());
        assert_eq!(read(&json!({ "maybe": null })).unwrap(), Outer::default());
        assert_eq!(read(&json!({ "bogus": 1 })).unwrap_err(), "bogus");
        assert_eq!(read(&json!({ "list": [{ "number": -1 }] })).unwrap_err(), "list[0].number");
    }

    #[test]
    fn an_array_in_an_objects_place_is_refused_wherever_that_is() {
        let array = json!([1, "a"]);
        for (value, place) in [
            (json!([[], {}, null, null, [], [1, 2, 0.5], true, null]), "."),
            (json!({ "list": [array] }), "list[0]"),
            (json!({ "map": { "k": array } }), "map.k"),
            (json!({ "maybe": array }), "maybe"),
            (json!({ "newtype": array }), "newtype"),
            (json!({ "kinds": [{ "sized": [7] }] }), "kinds[0].sized"),
            (json!({ "kinds": [{ "held": array }] }), "kinds[0].held"),
            (json!({ "kinds": [{ "pair": [array, 3] }] }), "kinds[0].pair[0]"),
        ] {
            assert_eq!(read(&value).unwrap_err(), place, "{value}");
        }
    }
}
