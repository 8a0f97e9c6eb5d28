//! Host links: how a server reaches the controllers, and through them the guests.
//!
//! [`InProcessLinks`] serves controllers that live in the same process: the all-in-one and the testbed. A controller is registered with
//! a [`LinkHandler`], which gets every stream that is opened to one of its incarnations. [`TcpOverLink`] makes a byte stream of one that leads to a
//! guest's port.

mod in_process;
mod request;
mod tcp;

pub use in_process::{InProcessLinks, LinkHandler, Registration};
pub use request::stream_request;
pub use tcp::TcpOverLink;
