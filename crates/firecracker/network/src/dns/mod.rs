//! A machine's DNS forwarder.
//!
//! It listens at the machine's gateway, inside of the machine's namespace, over UDP and TCP. It keeps nothing and knows nothing
//! of its own: a name that the policy lists is asked of the configured resolvers, from the host's namespace, and what is
//! answered is judged, made reachable, and only then told.
//!
//! * A name that is not listed is REFUSED, and nobody is asked. Not NXDOMAIN: that would say that the name does not exist, which
//!   resolvers in the guest may remember (RFC 2308) after a policy has changed.
//! * Of an answer, the chain of aliases from the name that was asked and the addresses at its end are taken; what else is in it,
//!   and any address that the policy does not let a name resolve to, is left out. An alias's target need not be listed: whoever
//!   owns the listed name says where it leads.
//! * Types other than A and AAAA are passed on without their additional parts; HTTPS and SVCB, whose hints hold addresses, are
//!   answered with no data; ANY and transfers are refused.
//! * Everything is bounded: sizes, queries under way, queries in a second, connections, and each wait ([`crate::DnsConfig`]).
//!   What is beyond a bound is dropped, as a resolver must expect of UDP.

mod forwarder;
mod grants;
mod message;
mod reader;
mod reply;
mod upstream;

pub(crate) use forwarder::{Forwarder, ForwarderSockets};
pub(crate) use grants::Grants;
