//! Extended registers of another processor.
//!
//! Vector registers and what has come after them are components of one area (XSAVE, Intel's manual, volume 1, chapter
//! 13), each of which a processor puts where it likes and says so. On a processor that has them elsewhere they are moved
//! there. One that it does not have at all is left out where there is nothing in it.

use std::borrow::Cow;

use cpr_image::model::{Bytes, Manifest, XstatePart};
use cpr_kernel::arch::{self, EXTENDED_MAX, EXTENDED_MIN};
use cpr_types::{Error, ErrorKind, Result};

/// Where the header has which components are not in their first state, bytes.
const IN_USE: std::ops::Range<usize> = 512..520;
/// Components of the legacy region: x87 and SSE.
const LEGACY: u64 = 0b11;

/// Where the components are on this machine.
pub fn parts_here() -> Vec<XstatePart> {
    let parts = arch::extended_parts().into_iter().map(|part| XstatePart {
        component: part.component,
        offset: part.offset as u32,
        length: part.length as u32,
    });
    parts.collect()
}

/// The image with registers as this machine has them; none where it has them like that already, or it is not known where
/// the image has them.
///
/// # Errors
/// [`ErrorKind::Incompatible`] where a thread has something in a component that this machine does not have.
pub fn adapt(manifest: &Manifest) -> Result<Option<Manifest>> {
    let (from, to) = (&manifest.checkpoint.xstate_parts, parts_here());
    if from.is_empty() || *from == to {
        return Ok(None);
    }
    let mut adapted = manifest.clone();
    for thread in adapted.processes.iter_mut().flat_map(|process| &mut process.threads) {
        let moved = rearrange(&thread.cpu.extended.0, from, &to).map_err(|lacking| {
            let what = format!(
                "this machine's processor lacks what thread {} uses: {lacking}",
                thread.tid
            );
            Error::new(ErrorKind::Incompatible, what)
        })?;
        thread.cpu.extended = Bytes(moved);
    }
    Ok(Some(adapted))
}

/// What users call a component.
fn name(component: u32) -> Cow<'static, str> {
    match component {
        2 => "AVX".into(),
        3 | 4 => "MPX".into(),
        5..=7 => "AVX-512".into(),
        arch::PROTECTION_KEYS => "memory protection keys".into(),
        17 | 18 => "AMX".into(),
        _ => format!("XSAVE component {component}").into(),
    }
}

/// An area with the components where `to` has them instead of where `from` has them. The error is what is lacking.
fn rearrange(area: &[u8], from: &[XstatePart], to: &[XstatePart]) -> std::result::Result<Vec<u8>, Cow<'static, str>> {
    let header = area.get(IN_USE).and_then(|bytes| bytes.try_into().ok());
    let (Some(header), Some(legacy)) = (header.map(u64::from_le_bytes), area.get(..EXTENDED_MIN)) else {
        return Ok(area.to_vec());
    };
    let mut moved = legacy.to_vec();
    let mut in_use = header & LEGACY;
    for component in (2..u64::BITS).filter(|component| header >> component & 1 == 1) {
        let find = |parts: &[XstatePart]| parts.iter().find(|part| part.component == component).copied();
        let source = find(from).filter(|part| (part.length as usize) < EXTENDED_MAX);
        let source = source.ok_or_else(|| name(component))?;
        let mut content = vec![0; source.length as usize];
        // What the image does not reach is zero.
        let rest = area.get(source.offset as usize..).unwrap_or_default();
        let there = rest.len().min(content.len());
        content[..there].copy_from_slice(&rest[..there]);
        match find(to) {
            Some(target) if target.length == source.length => {
                let at = target.offset as usize;
                moved.resize(moved.len().max(at + content.len()), 0);
                moved[at..at + content.len()].copy_from_slice(&content);
                in_use |= 1 << component;
            }
            _ if is_nothing(component, &content) => {}
            _ => return Err(name(component)),
        }
    }
    let keys = |parts: &[XstatePart]| {
        parts
            .iter()
            .find(|part| part.component == arch::PROTECTION_KEYS)
            .copied()
    };
    // Linux lets a thread that has never changed them use no key but that of all memory.
    if let (None, Some(target)) = (keys(from), keys(to)) {
        let content = arch::NO_PROTECTION_KEYS.to_le_bytes();
        let at = target.offset as usize;
        moved.resize(moved.len().max(at + target.length as usize), 0);
        moved[at..at + content.len()].copy_from_slice(&content);
        in_use |= 1 << arch::PROTECTION_KEYS;
    }
    moved[IN_USE].copy_from_slice(&in_use.to_le_bytes());
    moved.resize(moved.len().next_multiple_of(8), 0);
    Ok(moved)
}

/// Whether what a component holds means nothing to a program.
fn is_nothing(component: u32, content: &[u8]) -> bool {
    let no_keys = arch::NO_PROTECTION_KEYS.to_le_bytes();
    content.iter().all(|byte| *byte == 0)
        || component == arch::PROTECTION_KEYS
            && content.starts_with(&no_keys)
            && content[4..].iter().all(|byte| *byte == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part((component, offset, length): (u32, u32, u32)) -> XstatePart {
        XstatePart {
            component,
            offset,
            length,
        }
    }

    fn parts(all: &[(u32, u32, u32)]) -> Vec<XstatePart> {
        all.iter().copied().map(part).collect()
    }

    /// As processors of two makers have them.
    fn wide() -> Vec<XstatePart> {
        parts(&[
            (2, 576, 256),
            (5, 1088, 64),
            (6, 1152, 512),
            (7, 1664, 1024),
            (9, 2688, 8),
        ])
    }

    fn narrow() -> Vec<XstatePart> {
        parts(&[
            (2, 576, 256),
            (5, 832, 64),
            (6, 896, 512),
            (7, 1408, 1024),
            (9, 2432, 8),
        ])
    }

    /// An area in which each component has a content of its own.
    fn filled(parts: &[XstatePart]) -> Vec<u8> {
        let mut area = vec![1; EXTENDED_MIN];
        let mut in_use = LEGACY;
        for part in parts {
            let end = (part.offset + part.length) as usize;
            area.resize(area.len().max(end), 0);
            area[part.offset as usize..end].fill(part.component as u8);
            in_use |= 1 << part.component;
        }
        area[IN_USE].copy_from_slice(&in_use.to_le_bytes());
        area
    }

    #[test]
    fn components_go_where_the_other_processor_has_them() {
        let (wide, narrow) = (wide(), narrow());
        assert_eq!(rearrange(&filled(&wide), &wide, &narrow), Ok(filled(&narrow)));
        assert_eq!(rearrange(&filled(&narrow), &narrow, &wide), Ok(filled(&wide)));
        // What is not reached is zero, and nothing is lost that is.
        let mut short = filled(&wide);
        short.truncate(1152 + 8);
        let moved = rearrange(&short, &wide, &narrow).unwrap();
        assert_eq!(moved[896..904], [6; 8]);
        assert!(moved[904..].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn what_a_processor_lacks_is_left_out_only_where_nothing_is_in_it() {
        let (wide, small) = (wide(), parts(&[(2, 576, 256)]));
        assert_eq!(rearrange(&filled(&wide), &wide, &small), Err("AVX-512".into()));
        let keys = parts(&[(2, 576, 256), (9, 2688, 8)]);
        let mut area = filled(&keys);
        assert_eq!(rearrange(&area, &keys, &small), Err("memory protection keys".into()));
        // As Linux gives them to everybody.
        area[2688..].fill(0);
        area[2688..2692].copy_from_slice(&arch::NO_PROTECTION_KEYS.to_le_bytes());
        assert_eq!(rearrange(&area, &keys, &small), Ok(filled(&small)));
        assert_eq!(rearrange(&filled(&small), &small, &keys), Ok(area));
        // Numbers that somebody has made up.
        let far = parts(&[(2, u32::MAX, 256), (3, 0, u32::MAX)]);
        for parts in [&far[..1], &far[1..]] {
            let mut area = filled(&small);
            area[IN_USE].copy_from_slice(&(1u64 << parts[0].component).to_le_bytes());
            let _ = rearrange(&area, parts, &small);
        }
        assert_eq!(rearrange(&[0; 16], &far, &small), Ok(vec![0; 16]));
    }
}
