//! Linearizability: whether what concurrent clients saw of a store could have come from one client after another.
//!
//! [`record`] runs random clients against any StateStore and writes down who asked what when and what was answered;
//! [`check_store_history`] judges such a history, from here or from elsewhere: it is public so that the testbed judges what it records of
//! a whole system with the same checker. [`check`] is the search alone, over any [`Specification`].

mod checker;
mod record;
mod store;
#[cfg(test)]
mod tests;

pub use checker::{Operation, Specification, Verdict, check};
pub use record::{Plan, record};
pub use store::{
    StoreCheck, StoreContents, StoreInput, StoreOperation, StoreOutput, StoreSpecification, WriteId,
    check_store_history,
};
