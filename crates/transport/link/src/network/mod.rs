//! Links over a network. The protocol stands in [`flames_wire::host`].
//!
//! The controller dials; once the connection has become a link, the server opens streams over it. Each stream has a window of its own, so
//! that one which nobody reads holds up no other. Both sides look for signs of life: see [`SILENCE`].

mod hosted;
mod mux;
mod pump;
mod served;

use std::time::Duration;

pub use hosted::serve_link;
pub use served::NetworkLinks;

/// How many streams one link carries at once. A controller bounds its own further.
pub const MAX_STREAMS: usize = 1_024;
/// How often a link whose other side is silent is asked whether it is still there.
pub const PING_EVERY: Duration = Duration::from_secs(5);
/// After how long without a byte from the other side a link is given up. yamux asks at most every ten seconds, and is answered at once.
pub const SILENCE: Duration = Duration::from_secs(30);
/// How long opening a stream may take, and its first message to come.
const OPEN_WITHIN: Duration = Duration::from_secs(10);
