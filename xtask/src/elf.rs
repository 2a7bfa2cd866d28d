//! Bytes of a 64-bit little-endian ELF object → the names of its sections.

use anyhow::{Context, Result, bail};

/// Offset of the section table, entry size, entry count and index of the name table in the ELF header.
const SHOFF: usize = 0x28;
const SHENTSIZE: usize = 0x3a;
const SHNUM: usize = 0x3c;
const SHSTRNDX: usize = 0x3e;
/// Offsets of a section's file position and length in its table entry; its name is the first word.
const SH_OFFSET: usize = 0x18;
const SH_SIZE: usize = 0x20;

/// The names of all sections, in order.
pub(crate) fn section_names(object: &[u8]) -> Result<Vec<String>> {
    if object.get(..6) != Some(&[0x7f, b'E', b'L', b'F', 2, 1]) {
        bail!("it is no 64-bit little-endian ELF object");
    }
    let names = section(object, usize::from(u16_at(object, SHSTRNDX)?))?;
    let start = usize_at(object, names + SH_OFFSET)?;
    let table = object
        .get(start..start.saturating_add(usize_at(object, names + SH_SIZE)?))
        .context("its table of section names lies outside the file")?;
    (0..usize::from(u16_at(object, SHNUM)?))
        .map(|index| {
            let at = usize::try_from(u32_at(object, section(object, index)?)?)?;
            let name = table
                .get(at..)
                .context("a section name lies outside the table of names")?;
            let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
            Ok(String::from_utf8_lossy(name).into_owned())
        })
        .collect()
}

/// Where the table entry of section `index` starts.
fn section(object: &[u8], index: usize) -> Result<usize> {
    Ok(usize_at(object, SHOFF)? + index * usize::from(u16_at(object, SHENTSIZE)?))
}

fn bytes<const N: usize>(object: &[u8], at: usize) -> Result<[u8; N]> {
    let bytes = object
        .get(at..at.saturating_add(N))
        .context("the ELF object is cut short")?;
    Ok(bytes.try_into()?)
}

fn u16_at(object: &[u8], at: usize) -> Result<u16> {
    bytes(object, at).map(u16::from_le_bytes)
}

fn u32_at(object: &[u8], at: usize) -> Result<u32> {
    bytes(object, at).map(u32::from_le_bytes)
}

fn usize_at(object: &[u8], at: usize) -> Result<usize> {
    Ok(usize::try_from(bytes(object, at).map(u64::from_le_bytes)?)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_executable_has_a_text_section() {
        let object = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        assert!(
            section_names(&object)
                .unwrap()
                .iter()
                .any(|name| name == ".text")
        );
    }

    #[test]
    fn object_that_is_cut_short_is_an_error() {
        let object = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        assert!(section_names(&object[..70]).is_err());
        assert!(section_names(b"no object").is_err());
    }
}
