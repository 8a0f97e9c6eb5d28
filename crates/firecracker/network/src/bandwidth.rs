//! How fast a machine may send and receive, in the figures of Firecracker's rate limiters.

use std::time::Duration;

use flames_error::{Error, Result};
use serde::{Deserialize, Serialize};

/// A limit of one direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BandwidthLimit {
    /// Bytes in a second, on average: at least 10,000.
    pub bytes_per_second: u64,
    /// Bytes that may go at once after a pause. At least one packet of 65,562 bytes, the largest that a guest hands over when
    /// segmentation is offloaded: a smaller bucket would never let it pass.
    pub burst_bytes: u64,
}

/// A bucket as Firecracker's API takes it (`TokenBucket` of its description): it holds `size` and is full again after
/// `refill_time`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokenBucket {
    /// How many bytes it holds.
    pub size: u64,
    /// How long it takes to fill: whole milliseconds, at least one.
    pub refill_time: Duration,
}

/// The largest packet: 64 KiB, with the headers of Ethernet and virtio-net (Firecracker's `MAX_BUFFER_SIZE`).
const LARGEST_PACKET: u64 = 65_562;

impl BandwidthLimit {
    /// The bucket of this limit. The rate is met within 0.1 % from 1 MB/s upwards.
    ///
    /// Errors: `InvalidInput` when a figure is too small.
    pub fn token_bucket(self) -> Result<TokenBucket> {
        const OPERATION: &str = "network.bandwidth";
        if self.bytes_per_second < 10_000 {
            return Err(Error::invalid(
                OPERATION,
                "bytes_per_second",
                "A limit is at least 10000 bytes in a second.",
            ));
        }
        if self.burst_bytes < LARGEST_PACKET {
            return Err(Error::invalid(
                OPERATION,
                "burst_bytes",
                "A burst is at least 65562 bytes, one largest packet.",
            ));
        }
        let size = self.burst_bytes;
        let milliseconds = (u128::from(size) * 1000).div_ceil(u128::from(self.bytes_per_second)).max(1);
        let milliseconds = u64::try_from(milliseconds).unwrap_or(u64::MAX);
        // What rounding up took is given to the bucket, so that a short time to fill does not slow it.
        let exact = u128::from(self.bytes_per_second) * u128::from(milliseconds) / 1000;
        let size = u64::try_from(exact).unwrap_or(u64::MAX).max(size);
        Ok(TokenBucket { size, refill_time: Duration::from_millis(milliseconds) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_fills_at_the_rate_and_holds_the_burst() {
        for (rate, burst) in
            [(10_000, 65_562), (1_000_000, 65_562), (125_000_000, 1_000_000), (12_500_000_000, 65_562)]
        {
            let limit = BandwidthLimit { bytes_per_second: rate, burst_bytes: burst };
            let bucket = limit.token_bucket().unwrap();
            assert!(bucket.size >= burst);
            let reached = bucket.size as f64 / bucket.refill_time.as_secs_f64();
            assert!((reached / rate as f64 - 1.0).abs() < 0.001, "{rate}: {reached}");
        }
    }

    #[test]
    fn a_bucket_that_would_never_let_a_packet_pass_is_refused() {
        let limit = |bytes_per_second, burst_bytes| BandwidthLimit { bytes_per_second, burst_bytes };
        assert_eq!(limit(1_000_000, 1500).token_bucket().unwrap_err().field(), Some("burst_bytes"));
        assert_eq!(limit(9_999, 100_000).token_bucket().unwrap_err().field(), Some("bytes_per_second"));
    }
}
