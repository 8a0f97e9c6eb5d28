//! A writer of `newc` archives, the form of an initramfs (kernel documentation, "initramfs buffer format"). The same calls give the same
//! bytes: no times, no owners, inode numbers counted from 1.

use std::io::Write;

use crate::error::Result;

const REGULAR: u32 = 0o100_000;
const DIRECTORY: u32 = 0o040_000;
const SYMLINK: u32 = 0o120_000;
const CHARACTER: u32 = 0o020_000;
const TRAILER: &str = "TRAILER!!!";
/// GNU cpio pads an archive to this.
const ARCHIVE_BLOCK: u64 = 512;

/// Writes entries one after another. Folders come before what is in them.
#[derive(Debug)]
pub struct CpioWriter<W> {
    output: W,
    inode: u32,
    written: u64,
}

impl<W: Write> CpioWriter<W> {
    /// An archive that goes to `output`.
    pub fn new(output: W) -> Self {
        Self { output, inode: 0, written: 0 }
    }

    /// Adds a folder.
    pub fn directory(&mut self, path: &str, mode: u32) -> Result<()> {
        self.entry(path, DIRECTORY | mode, 2, (0, 0), &[])
    }

    /// Adds a file.
    pub fn file(&mut self, path: &str, mode: u32, content: &[u8]) -> Result<()> {
        self.entry(path, REGULAR | mode, 1, (0, 0), content)
    }

    /// Adds a symbolic link.
    pub fn symlink(&mut self, path: &str, target: &str) -> Result<()> {
        self.entry(path, SYMLINK | 0o777, 1, (0, 0), target.as_bytes())
    }

    /// Adds a character device.
    pub fn character_device(&mut self, path: &str, mode: u32, major: u32, minor: u32) -> Result<()> {
        self.entry(path, CHARACTER | mode, 1, (major, minor), &[])
    }

    /// Writes the end mark and gives the output back.
    pub fn finish(mut self) -> Result<W> {
        self.inode = u32::MAX;
        self.entry(TRAILER, 0, 1, (0, 0), &[])?;
        let rest = self.written.wrapping_neg() % ARCHIVE_BLOCK;
        self.write(&vec![0; rest as usize])?;
        Ok(self.output)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.output.write_all(bytes)?;
        self.written += bytes.len() as u64;
        Ok(())
    }

    fn entry(&mut self, path: &str, mode: u32, links: u32, device: (u32, u32), content: &[u8]) -> Result<()> {
        let size = u32::try_from(content.len()).map_err(|_| {
            crate::ImageError::too_large("a file of an initramfs is under 4 GiB").at(path.as_bytes())
        })?;
        self.inode = self.inode.wrapping_add(1);
        let name_bytes = path.len() as u32 + 1;
        let (major, minor) = device;
        let fields = [self.inode, mode, 0, 0, links, 0, size, 0, 0, major, minor, name_bytes, 0]
            .map(|field| format!("{field:08x}"));
        self.write(format!("070701{}{path}\0", fields.concat()).as_bytes())?;
        self.pad()?;
        self.write(content)?;
        self.pad()
    }

    fn pad(&mut self) -> Result<()> {
        let rest = (self.written.wrapping_neg() % 4) as usize;
        self.write(&[0; 3][..rest])
    }
}
