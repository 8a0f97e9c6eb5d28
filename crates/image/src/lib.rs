//! Images: from an OCI image, a tar or a folder to a bootable ext4 root file system; kernels; the initramfs.
//!
//! * [`rootfs`] does the conversion: the archive is applied to a tree in memory, which is then written as ext4. Nothing of the archive
//!   ever becomes a path of the host, no privilege is needed for owners or devices, and the same input gives the same bytes.
//! * [`Converter`] runs it in a bounded child process; [`child_main`] is that child.
//! * [`writable`] makes the upper layer of a VM; [`initramfs`], [`cpio`] and [`kernel`] what it boots from; [`debian`] gets a kernel and a
//!   base image from Debian's packages.
//! * [`ImageStore`] keeps artefacts in a BlobStore under their digests; [`LocalImages`] makes them local to a host.

mod archive;
mod bundle;
mod command;
mod config;
mod convert;
pub mod cpio;
pub mod debian;
mod directory;
mod elf;
mod error;
mod ext4;
pub mod initramfs;
pub mod kernel;
mod limits;
mod local;
mod oci;
pub mod rootfs;
mod spool;
mod store;
mod tree;
pub mod writable;

pub use config::ImageConfig;
pub use convert::{Bounds, CONVERT_COMMAND, Conversion, Converter, child_main};
pub use error::{ImageError, ImageErrorKind, Result};
pub use limits::{DeviceNodes, Limits};
pub use local::LocalImages;
pub use rootfs::{ConversionRequest, ConversionResult, Progress, SourceKind};
pub use store::{Artefact, ArtefactKind, Encoding, ImageManifest, ImageStore};
