//! Host links: how a server reaches the controllers, and through them the guests.
//!
//! [`InProcessLinks`] serves controllers that live in the same process: the all-in-one and the testbed. [`NetworkLinks`] serves those on other
//! machines, which dial the server and then [`serve_link`]. In both forms a controller has a [`LinkHandler`], which gets every stream that is
//! opened to one of its incarnations. [`TcpOverLink`] makes a byte stream of one that leads to a
//! guest's port.

mod in_process;
mod network;
mod request;
mod tcp;

pub use in_process::{InProcessLinks, LinkHandler, Registration};
pub use network::{MAX_STREAMS, NetworkLinks, PING_EVERY, SILENCE, serve_link};
pub use request::stream_request;
pub use tcp::TcpOverLink;
