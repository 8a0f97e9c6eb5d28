//! Reading what images come packed in: compressed streams, tar archives, layers of an image.

pub(crate) mod layer;
pub(crate) mod stream;
pub(crate) mod tar;
