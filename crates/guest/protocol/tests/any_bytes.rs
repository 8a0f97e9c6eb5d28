//! Whatever the bytes, decoding answers and does not panic.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use flames_guest_protocol::config::{CONFIG_MAGIC, CONFIG_VERSION};
use flames_guest_protocol::frame::FrameReader;
use flames_guest_protocol::message::Operation;
use flames_guest_protocol::{ErrorKind, GuestConfig};
use proptest::prelude::*;

proptest! {
    #[test]
    fn a_config_drive_of_any_bytes_is_refused(
        length in any::<u32>(),
        rest in proptest::collection::vec(any::<u8>(), 0..500),
    ) {
        let header = [&CONFIG_MAGIC[..], &CONFIG_VERSION.to_le_bytes(), &length.to_le_bytes()].concat();
        prop_assert_eq!(GuestConfig::decode(&[header, rest.clone()].concat()).unwrap_err().kind, ErrorKind::Corrupt);
        prop_assert!(GuestConfig::decode(&rest).is_err());
    }

    #[test]
    fn a_request_of_any_bytes_is_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..500)) {
        prop_assert!(Operation::decode(&bytes).is_err());
    }

    #[test]
    fn frames_of_any_bytes_end(bytes in proptest::collection::vec(0..16u8, 0..500)) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let mut reader = FrameReader::new(bytes.as_slice());
        let mut frames = 0;
        while let Ok(Some(frame)) = runtime.block_on(reader.next()) {
            frames += 1;
            prop_assert!(frame.payload.len() <= bytes.len());
        }
        prop_assert!(frames <= bytes.len() / 5);
    }
}
