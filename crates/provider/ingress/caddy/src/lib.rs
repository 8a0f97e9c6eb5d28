//! IngressProvider over the admin API of a Caddy (2.6 and later) that runs beside Flames.
//!
//! # What is ours in Caddy's configuration
//!
//! Two routes of one HTTP server, and what is in them; nothing else is ever changed:
//!
//! * `@id` `flames:{cluster}`: a subroute that holds one route for each port of a VM (`@id` `flames:{cluster}:{port}:{vm}`), by key.
//! * `@id` `flames:{cluster}:unknown-host`: answers 404 to whatever no route before it took, since Caddy by itself answers an empty 200.
//!
//! The server is made when it is not there (then it is ours, and listens where [`CaddyConfig::listen`] says). In a server that is there
//! already, ours come behind its own routes; what is appended there later is reached after our next change. Whatever else stands in the configuration, other servers, apps and routes, stays.
//!
//! # How a change is made
//!
//! One task reads the server's routes, applies all the changes that wait, and replaces the subroute by its id, under the `If-Match`
//! of what it read: a change that somebody else made meanwhile is never overwritten, the changes are applied again to what stands then. So
//! a change is whole or not there, also with several Flames servers before one Caddy, and many changes at once cost one reload. Caddy
//! loads a change in 2 to 9 ms (it grows with the whole configuration: thousands of routes, not hundreds of thousands), refuses no
//! connection for it and finishes the requests that run; a client's kept connection may be closed between two requests.
//!
//! After each change Caddy opens its admin API anew, and whoever is connecting then is cut off. What cannot have changed anything is asked
//! again; after a write whose answer was lost the configuration is read, which tells what became of it.
//!
//! Caddy forgets what the admin API told it when it restarts without `--resume`: then `list` is empty, and the reconciler registers all
//! again. A route of ours that somebody has edited is listed as it stands; one that cannot be read as a route is not listed, and goes
//! with the next change.
//!
//! # What it cannot do
//!
//! Caddy connects to addresses alone: a guest's port is `NotSupported`, and the capabilities say so. A request does not wake a VM.
//! When several ports of a VM share a host name, the lowest port answers there.

mod admin;
mod document;
mod ingress;
mod worker;

pub use admin::AdminAddress;
pub use ingress::{CaddyConfig, CaddyIngress};
