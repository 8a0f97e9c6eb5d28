//! Files that are made once for all processes of a test run.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// The test run's own folder, below the target folder.
#[derive(Debug, Clone, Copy)]
pub struct Scratch(&'static str);

impl Scratch {
    /// `folder` is `env!("CARGO_TARGET_TMPDIR")` of the test.
    pub const fn new(folder: &'static str) -> Self {
        Self(folder)
    }

    /// Where it is; made when it is absent.
    pub fn path(self) -> &'static Path {
        let folder = Path::new(self.0);
        std::fs::create_dir_all(folder).unwrap();
        folder
    }

    /// A file that is made once, whoever is first. Everybody reads it, and nobody writes it.
    pub fn made_once(self, name: &str, make: impl FnOnce(&Path)) -> PathBuf {
        let path = self.path().join(name);
        if !path.exists() {
            let mine = tempfile::Builder::new().prefix(name).tempfile_in(self.path()).unwrap();
            let mine = mine.into_temp_path();
            make(&mine);
            std::fs::set_permissions(&mine, std::fs::Permissions::from_mode(0o444)).unwrap();
            mine.persist(&path).unwrap();
        }
        path
    }

    /// As [`Scratch::made_once`], named after what it is made of, so that a changed one is never taken for the old one.
    pub fn made_of(self, name: &str, source: &[u8], make: impl FnOnce(&Path)) -> PathBuf {
        // FNV-1a of 64 bits.
        let sum = source.iter().fold(0xcbf2_9ce4_8422_2325_u64, |sum, byte| {
            (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
        });
        self.made_once(&format!("{name}-{sum:x}.cpio"), make)
    }
}
