//! The initramfs that every guest boots from: our agent as `/init`, and the modules that the kernel lacks.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use flate2::{Compression, GzBuilder};

use crate::cpio::CpioWriter;
use crate::error::{ImageError, Result};

/// Where the list of modules is: one absolute path a line, in the order in which they must be loaded. Empty when there are none.
pub const MODULES_LIST: &str = "/flames/modules.list";
/// Folders that the agent mounts on or writes into.
const FOLDERS: [&str; 9] = ["dev", "flames", "flames/modules", "mnt", "proc", "run", "sys", "tmp", "newroot"];

/// How an initramfs is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Packing {
    /// As it is: the fastest to boot under emulation, since nothing is unpacked, and read by every kernel.
    #[default]
    Plain,
    /// gzip: read by practically every kernel.
    Gzip,
    /// zstd: smaller and faster than gzip; Linux 5.9 and later.
    Zstd,
}

/// What goes into an initramfs.
#[derive(Debug, Clone)]
pub struct Initramfs<'a> {
    /// The static binary that becomes `/init`.
    pub agent: &'a Path,
    /// Modules in the order in which they must be loaded; see [`crate::kernel::ordered_modules`].
    pub modules: &'a [PathBuf],
    /// How it is packed.
    pub packing: Packing,
}

impl Initramfs<'_> {
    /// The archive's bytes; the same input gives the same bytes.
    ///
    /// Errors: `NotFound`, `Io` when a file cannot be read; `Malformed` when two modules have one name; `Unsupported` when the agent
    /// is no static ELF program (a dynamic one would find no loader).
    pub fn build(&self) -> Result<Vec<u8>> {
        let read = |path: &Path| fs::read(path).map_err(|error| ImageError::from(error).at_path(path));
        let agent = read(self.agent)?;
        crate::elf::check_static_program(&agent).map_err(|error| error.at_path(self.agent))?;
        let mut archive = CpioWriter::new(Vec::with_capacity(agent.len() + (1 << 20)));
        for folder in FOLDERS {
            archive.directory(folder, 0o755)?;
        }
        // The kernel opens it for /init before anything is mounted.
        archive.character_device("dev/console", 0o600, 5, 1)?;
        archive.file("init", 0o755, &agent)?;
        let mut list = String::new();
        let mut names = std::collections::BTreeSet::new();
        for module in self.modules {
            let name = module.file_name().and_then(|name| name.to_str()).filter(|name| !name.contains('\n'));
            let name =
                name.ok_or_else(|| ImageError::malformed("a module without a plain name").at_path(module))?;
            if !names.insert(name) {
                return Err(ImageError::malformed("two modules have this name").at_path(module));
            }
            archive.file(&format!("flames/modules/{name}"), 0o644, &read(module)?)?;
            list.push_str(&format!("/flames/modules/{name}\n"));
        }
        archive.file(MODULES_LIST.trim_start_matches('/'), 0o644, list.as_bytes())?;
        pack(archive.finish()?, self.packing)
    }
}

fn pack(archive: Vec<u8>, packing: Packing) -> Result<Vec<u8>> {
    match packing {
        Packing::Plain => Ok(archive),
        Packing::Gzip => {
            // Neither a time nor a name in the header.
            let mut encoder = GzBuilder::new().mtime(0).write(Vec::new(), Compression::default());
            encoder.write_all(&archive)?;
            Ok(encoder.finish()?)
        }
        Packing::Zstd => Ok(zstd::bulk::compress(&archive, 6)?),
    }
}
