//! What the tests of this crate share: archives made byte by byte, and the machine's programs as judges.

#![allow(dead_code, unreachable_pub)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use flames_image::rootfs::convert;
use flames_image::{ConversionRequest, ConversionResult, ImageError};
use sha2::{Digest as _, Sha256};

/// Whether what a test needs is there. Says so when not, and fails when `FLAMES_REQUIRE` names it.
pub fn have(service: &str) -> bool {
    let found = match service {
        "root" => rustix::process::geteuid().is_root(),
        "mke2fs" => program("e2fsck").is_some(),
        "qemu" => program("qemu-system-x86_64").is_some(),
        other => program(other).is_some(),
    };
    let required = std::env::var("FLAMES_REQUIRE").unwrap_or_default();
    assert!(
        found || !required.split(',').any(|name| name == service),
        "FLAMES_REQUIRE names {service}, and it is not here"
    );
    if !found {
        eprintln!("SKIPPED: this test needs `{service}`");
    }
    found
}

pub fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var("PATH").unwrap_or_default();
    let folders = path.split(':').chain(["/sbin", "/usr/sbin"]);
    folders.map(|folder| Path::new(folder).join(name)).find(|file| file.is_file())
}

/// Writes tars with nothing in between, hostile ones too.
#[derive(Default, Clone)]
pub struct Tar {
    bytes: Vec<u8>,
}

pub struct Header<'a> {
    pub path: &'a [u8],
    pub kind: u8,
    pub link: &'a [u8],
    pub mode: u32,
    pub owner: (u32, u32),
    pub device: (u32, u32),
    pub time: u64,
}

impl Default for Header<'_> {
    fn default() -> Self {
        Self {
            path: b"x",
            kind: b'0',
            link: b"",
            mode: 0o644,
            owner: (0, 0),
            device: (0, 0),
            time: 1_000_000_000,
        }
    }
}

impl Tar {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn entry(mut self, header: &Header<'_>, content: &[u8]) -> Self {
        self.header(header, content.len() as u64);
        self.bytes.extend(content);
        self.pad();
        self
    }

    pub fn header(&mut self, header: &Header<'_>, size: u64) {
        let mut record = [0u8; 512];
        let mut put = |at: usize, text: &[u8]| record[at..at + text.len()].copy_from_slice(text);
        put(0, header.path);
        put(100, format!("{:07o}", header.mode).as_bytes());
        put(108, format!("{:07o}", header.owner.0).as_bytes());
        put(116, format!("{:07o}", header.owner.1).as_bytes());
        put(124, format!("{size:011o}").as_bytes());
        put(136, format!("{:011o}", header.time).as_bytes());
        put(148, b"        ");
        put(156, &[header.kind]);
        put(157, header.link);
        put(257, b"ustar\x0000");
        put(329, format!("{:07o}", header.device.0).as_bytes());
        put(337, format!("{:07o}", header.device.1).as_bytes());
        let sum: u32 = record.iter().map(|byte| u32::from(*byte)).sum();
        record[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.bytes.extend(record);
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(512), 0);
    }

    pub fn file(self, path: &str, content: &[u8]) -> Self {
        self.entry(&Header { path: path.as_bytes(), ..Header::default() }, content)
    }

    pub fn directory(self, path: &str) -> Self {
        self.entry(&Header { path: path.as_bytes(), kind: b'5', mode: 0o755, ..Header::default() }, b"")
    }

    pub fn symlink(self, path: &str, target: &str) -> Self {
        let (path, link) = (path.as_bytes(), target.as_bytes());
        self.entry(&Header { path, kind: b'2', link, mode: 0o777, ..Header::default() }, b"")
    }

    pub fn hard_link(self, path: &str, target: &str) -> Self {
        let (path, link) = (path.as_bytes(), target.as_bytes());
        self.entry(&Header { path, kind: b'1', link, ..Header::default() }, b"")
    }

    /// A PAX header for the entry that follows.
    pub fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let mut body = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let mut length = rest + 1;
            while length != rest + length.to_string().len() {
                length = rest + length.to_string().len();
            }
            body.extend(format!("{length} {key}=").as_bytes());
            body.extend(*value);
            body.push(b'\n');
        }
        self.entry(&Header { path: b"pax", kind: b'x', ..Header::default() }, &body)
    }

    pub fn done(mut self) -> Vec<u8> {
        self.bytes.extend([0; 1024]);
        self.bytes
    }

    pub fn unfinished(self) -> Vec<u8> {
        self.bytes
    }
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    std::io::Write::write_all(&mut encoder, bytes).unwrap();
    encoder.finish().unwrap()
}

pub fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A conversion in this process, its file system unpacked beside.
pub struct Made {
    pub result: ConversionResult,
    pub image: PathBuf,
    pub folder: tempfile::TempDir,
}

pub fn make(request: &ConversionRequest) -> Result<Made, ImageError> {
    let folder = tempfile::tempdir().unwrap();
    let result = convert(request, folder.path(), &mut |_| {})?;
    let image = folder.path().join("image");
    let packed = fs::File::open(folder.path().join(&result.file)).unwrap();
    zstd::stream::copy_decode(packed, fs::File::create(&image).unwrap()).unwrap();
    assert_eq!(fs::metadata(&image).unwrap().len(), result.size);
    assert_eq!(format!("sha256:{}", hex(&fs::read(&image).unwrap())), result.digest);
    Ok(Made { result, image, folder })
}

pub fn make_from_bytes(
    bytes: &[u8],
    change: impl FnOnce(&mut ConversionRequest),
) -> Result<Made, ImageError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("source");
    fs::write(&path, bytes).unwrap();
    let mut request = ConversionRequest::new(&path);
    change(&mut request);
    make(&request)
}

/// What e2fsck finds: nothing, or this fails.
pub fn check(image: &Path) {
    let output = Command::new(program("e2fsck").unwrap()).args(["-f", "-n"]).arg(image).output().unwrap();
    assert!(
        output.status.success(),
        "e2fsck: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

/// A file system mounted by the kernel of this machine.
pub struct Mounted {
    pub path: PathBuf,
    _folder: tempfile::TempDir,
}

impl Mounted {
    pub fn new(image: &Path, options: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mnt");
        fs::create_dir(&path).unwrap();
        let output =
            Command::new("mount").args(["-t", "ext4", "-o", options]).arg(image).arg(&path).output().unwrap();
        assert!(output.status.success(), "mount: {}", String::from_utf8_lossy(&output.stderr));
        Self { path, _folder: folder }
    }

    pub fn has(&self, path: &str) -> bool {
        fs::symlink_metadata(self.path.join(path)).is_ok()
    }

    pub fn text(&self, path: &str) -> String {
        fs::read_to_string(self.path.join(path)).unwrap()
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.path).status();
    }
}
