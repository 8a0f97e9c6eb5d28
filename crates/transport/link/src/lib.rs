//! Host links: how a server reaches the controllers, and through them the guests.
//!
//! [`InProcessLinks`] serves controllers that live in the same process: the all-in-one and the testbed. A controller is registered with
//! a [`LinkHandler`], which gets every stream that is opened to one of its incarnations.

mod in_process;
mod request;

pub use in_process::{InProcessLinks, LinkHandler, Registration};
pub use request::stream_request;
