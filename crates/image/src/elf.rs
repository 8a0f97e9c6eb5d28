//! As much of ELF as is needed here (System V ABI, "Object Files"), read from bytes that may be anything.

use crate::error::{ImageError, Result};

const X86_64: u16 = 62;
const AARCH64: u16 = 183;
const INTERPRETER: u32 = 3;

/// A 64-bit little-endian ELF file.
pub(crate) struct Elf<'a> {
    bytes: &'a [u8],
}

fn take<const N: usize>(bytes: &[u8], at: u64) -> Option<[u8; N]> {
    let start = usize::try_from(at).ok()?;
    bytes.get(start..start.checked_add(N)?)?.try_into().ok()
}

impl<'a> Elf<'a> {
    /// `None` when the bytes are no such file.
    pub(crate) fn parse(bytes: &'a [u8]) -> Option<Self> {
        // 64-bit, little-endian, version 1.
        (bytes.len() >= 64 && bytes.starts_with(b"\x7fELF\x02\x01\x01")).then_some(Self { bytes })
    }

    fn u16(&self, at: u64) -> Option<u16> {
        take(self.bytes, at).map(u16::from_le_bytes)
    }

    fn u32(&self, at: u64) -> Option<u32> {
        take(self.bytes, at).map(u32::from_le_bytes)
    }

    fn u64(&self, at: u64) -> Option<u64> {
        take(self.bytes, at).map(u64::from_le_bytes)
    }

    /// 1: relocatable, 2: executable, 3: position-independent.
    pub(crate) fn kind(&self) -> Option<u16> {
        self.u16(16)
    }

    pub(crate) fn machine(&self) -> Option<u16> {
        self.u16(18)
    }

    pub(crate) fn is_for_this_machine(&self) -> bool {
        let wanted = match std::env::consts::ARCH {
            "x86_64" => X86_64,
            "aarch64" => AARCH64,
            _ => return false,
        };
        self.machine() == Some(wanted)
    }

    pub(crate) fn is_x86_64(&self) -> bool {
        self.machine() == Some(X86_64)
    }

    /// The types of all program headers.
    pub(crate) fn segment_types(&self) -> Vec<u32> {
        let (Some(start), Some(size), Some(count)) = (self.u64(32), self.u16(54), self.u16(56)) else {
            return Vec::new();
        };
        (0..u64::from(count))
            .filter_map(|index| self.u32(start.checked_add(index * u64::from(size))?))
            .collect()
    }

    /// The bytes of the section named.
    pub(crate) fn section(&self, name: &[u8]) -> Option<&'a [u8]> {
        let (start, size, count, names) = (self.u64(40)?, self.u16(58)?, self.u16(60)?, self.u16(62)?);
        let header = |index: u16| start.checked_add(u64::from(index) * u64::from(size));
        let content = |index: u16| {
            let at = header(index)?;
            let offset = usize::try_from(self.u64(at.checked_add(24)?)?).ok()?;
            let length = usize::try_from(self.u64(at.checked_add(32)?)?).ok()?;
            self.bytes.get(offset..offset.checked_add(length)?)
        };
        let texts = content(names)?;
        (0..count).find_map(|index| {
            let at = usize::try_from(self.u32(header(index)?)?).ok()?;
            let found = texts.get(at..)?.split(|byte| *byte == 0).next()?;
            (found == name).then(|| content(index)).flatten()
        })
    }
}

/// Refuses what cannot be `/init` of an empty root: it must be a program for this machine that needs no loader.
pub(crate) fn check_static_program(bytes: &[u8]) -> Result<()> {
    let elf = Elf::parse(bytes).filter(|elf| matches!(elf.kind(), Some(2 | 3)));
    let elf = elf.ok_or_else(|| ImageError::unsupported("not an ELF program"))?;
    if !elf.is_for_this_machine() {
        return Err(ImageError::unsupported("a program for another processor"));
    }
    if elf.segment_types().contains(&INTERPRETER) {
        return Err(ImageError::unsupported(
            "a dynamically linked program; the guest's first program must be static",
        ));
    }
    Ok(())
}
