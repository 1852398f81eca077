//! Programs of a kernel with another vdso.
//!
//! A program knows the functions of the vdso (vdso(7)) by their addresses, and the code there is the kernel's. Under a
//! kernel with other code, what the image has of the old one is put in its place as memory of the program's own, and
//! each of its functions begins with a jump to the same function of the new one, which stays where the program has
//! nothing. What the new one does not have is a system call in its place.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;

use cpr_image::Image;
use cpr_image::model::{Manifest, Mapping, MappingKind};
use cpr_kernel::arch::{self, Registers};
use cpr_kernel::memory::Memory;
use cpr_kernel::proc::{MapKind, ProcDir};
use cpr_types::{Context, Error, ErrorKind, Result};

/// Largest vdso that is looked at; they have some pages.
const LARGEST: u64 = 1 << 20;

/// Where the functions of an old vdso jump to.
#[derive(Debug)]
pub struct Renewal {
    /// The image with the old vdso as memory of the processes.
    pub manifest: Manifest,
    /// Where the old one is in each address space, by the index of that.
    places: BTreeMap<usize, u64>,
    /// Offset of each function in the old one, and what takes its place.
    functions: Vec<(u64, Substitute)>,
}

/// What a function of the old vdso is replaced by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Substitute {
    /// The function at this offset of the new one.
    Jump(u64),
    /// Code for what the new one does not have.
    Code(&'static [u8]),
}

/// What has to be done to an image so that its programs run with this kernel's vdso; none where that is the image's.
///
/// # Errors
/// [`ErrorKind::Incompatible`] where it cannot be done: a function is gone, or a thread was inside one.
pub fn renew(image: &Image, manifest: &Manifest) -> Result<Option<Renewal>> {
    let checkpoint = &manifest.checkpoint;
    if checkpoint.vdso_hash.0.is_empty() {
        return Ok(None);
    }
    let refuse = |reason: &str| {
        let was = &checkpoint.uname.release;
        let text = format!("the vdso of this kernel is not that of the image's (Linux {was}): {reason}");
        Error::new(ErrorKind::Incompatible, text).with_hint("restart under the kernel the checkpoint was made under")
    };
    let own = ProcDir::open(std::process::id() as i32)
        .and_then(|dir| dir.maps())
        .context(|| "read /proc/self/maps")?;
    let map = own.iter().find(|map| map.kind() == MapKind::Vdso);
    let map = map.ok_or_else(|| Error::new(ErrorKind::Incompatible, "this kernel gives processes no vdso"))?;
    let mut new = vec![0u8; (map.end - map.start) as usize];
    File::open("/proc/self/mem")
        .and_then(|file| file.read_exact_at(&mut new, map.start))
        .context(|| "read our vdso")?;
    let lengths = |kind: &MappingKind| match kind {
        MappingKind::Vdso => Some(MapKind::Vdso),
        MappingKind::Vvar => Some(MapKind::Vvar),
        MappingKind::VvarClock => Some(MapKind::VvarVclock),
        _ => None,
    };
    let is_here = |mapping: &Mapping, kind: MapKind| {
        let length = mapping.end - mapping.start;
        own.iter()
            .any(|map| map.kind() == kind && map.end - map.start == length)
    };
    let mut parts = manifest.address_spaces.iter().flat_map(|space| &space.mappings);
    let same_lengths = parts.all(|mapping| lengths(&mapping.kind).is_none_or(|kind| is_here(mapping, kind)));
    if same_lengths && cpr_image::hash(&new)[..] == checkpoint.vdso_hash.0[..] {
        return Ok(None);
    }
    let old = saved_code(image, manifest)?.ok_or_else(|| refuse("the image does not have its code"))?;
    if cpr_image::hash(&old)[..] != checkpoint.vdso_hash.0[..] {
        return Err(Error::new(
            ErrorKind::Damaged,
            "the vdso in the image is not the one it names",
        ));
    }
    let substitutes = substitutes(&functions(&old), &functions(&new)).map_err(|reason| refuse(&reason))?;
    let mut renewed = manifest.clone();
    let mut places = BTreeMap::new();
    for (index, space) in renewed.address_spaces.iter_mut().enumerate() {
        space
            .mappings
            .retain(|mapping| !matches!(mapping.kind, MappingKind::Vvar | MappingKind::VvarClock));
        for mapping in space.mappings.iter_mut().filter(|m| m.kind == MappingKind::Vdso) {
            mapping.kind = MappingKind::Anonymous;
            places.insert(index, mapping.start);
        }
    }
    let length = old.len() as u64;
    for process in &manifest.processes {
        let place = process.address_space.and_then(|id| places.get(&id.index()));
        let Some(&place) = place else { continue };
        for thread in &process.threads {
            let registers = Registers::from_bytes(&thread.cpu.general.0);
            if registers.is_some_and(|registers| (place..place + length).contains(&registers.program_counter())) {
                return Err(refuse(&format!("thread {} was in one of its functions", thread.tid)));
            }
        }
    }
    Ok(Some(Renewal {
        manifest: renewed,
        places,
        functions: substitutes.into_iter().collect(),
    }))
}

impl Renewal {
    /// Has the functions of the old vdso jump to those of the new one, which lies at `vdso`, in the memory of a process
    /// with the address space numbered `space`.
    ///
    /// # Errors
    /// The memory cannot be written.
    pub fn apply(&self, memory: &Memory, space: usize, vdso: u64) -> Result<()> {
        let Some(place) = self.places.get(&space) else {
            return Ok(());
        };
        for (old, substitute) in &self.functions {
            let at = place + old;
            let written = match substitute {
                Substitute::Jump(new) => memory.write(at, &arch::jump(vdso + new)),
                Substitute::Code(code) => memory.write(at, code),
            };
            written.context(|| format!("write a function at {at:#x}"))?;
        }
        Ok(())
    }
}

/// What takes the place of each function of the old vdso, by its offset; or why there is nothing.
fn substitutes(
    was: &BTreeMap<String, Function>,
    is: &BTreeMap<String, Function>,
) -> std::result::Result<BTreeMap<u64, Substitute>, String> {
    let mut found = BTreeMap::new();
    for (name, function) in was {
        let (substitute, length) = match is.get(name) {
            Some(target) => (Substitute::Jump(target.offset), arch::JUMP_SIZE),
            None => {
                let code = arch::without_vdso(name).ok_or_else(|| format!("it has no {name}"))?;
                (Substitute::Code(code), code.len())
            }
        };
        if function.length < length as u64 {
            return Err(format!("its {name} has no room for a jump"));
        }
        // A function may have two names, of which the new one has one.
        let known = found.entry(function.offset).or_insert(substitute);
        if matches!(substitute, Substitute::Jump(_)) {
            *known = substitute;
        }
    }
    match found.is_empty() {
        true => Err("its functions are not known".to_owned()),
        false => Ok(found),
    }
}

/// The code of the vdso, from the first address space that has one.
fn saved_code(image: &Image, manifest: &Manifest) -> Result<Option<Vec<u8>>> {
    let mut mappings = manifest.address_spaces.iter().flat_map(|space| &space.mappings);
    let Some(mapping) = mappings.find(|mapping| mapping.kind == MappingKind::Vdso) else {
        return Ok(None);
    };
    let length = mapping.end - mapping.start;
    let saved: u64 = mapping.extents.iter().map(|extent| extent.length).sum();
    if saved != length || length > LARGEST {
        return Ok(None);
    }
    let mut code = vec![0u8; length as usize];
    for extent in &mapping.extents {
        let from = (extent.start - mapping.start) as usize;
        let part = code.get_mut(from..from + extent.length as usize);
        let part = part.ok_or_else(|| Error::new(ErrorKind::Damaged, "the vdso in the image has no place"))?;
        image.read_data(extent.offset, part)?;
    }
    Ok(Some(code))
}

/// A function of a vdso.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Function {
    offset: u64,
    length: u64,
}

/// The functions that an ELF image has in its table of dynamic symbols (elf(5)), by name; nothing of what cannot be
/// understood. It is linked to be at address 0.
fn functions(elf: &[u8]) -> BTreeMap<String, Function> {
    const SECTION: usize = 64;
    const SYMBOL: usize = 24;
    const SHT_DYNSYM: u64 = 11;
    const STT_FUNC: u64 = 2;
    let number = |at: usize, length: usize| -> Option<u64> {
        let bytes = elf.get(at..at.checked_add(length)?)?;
        let mut raw = [0u8; 8];
        raw[..length].copy_from_slice(bytes);
        Some(u64::from_le_bytes(raw))
    };
    let section = |index: u64| -> Option<(u64, &[u8], u64)> {
        let table = usize::try_from(number(0x28, 8)?).ok()?;
        let at = table.checked_add(usize::try_from(index).ok()?.checked_mul(SECTION)?)?;
        let offset = usize::try_from(number(at.checked_add(0x18)?, 8)?).ok()?;
        let length = usize::try_from(number(at + 0x20, 8)?).ok()?;
        Some((
            number(at + 4, 4)?,
            elf.get(offset..offset.checked_add(length)?)?,
            number(at + 0x28, 4)?,
        ))
    };
    let mut found = BTreeMap::new();
    let is_elf = elf.starts_with(b"\x7fELF\x02\x01") && number(0x3a, 2) == Some(SECTION as u64);
    let sections = number(0x3c, 2).filter(|_| is_elf).unwrap_or(0);
    let dynamic = (0..sections).filter_map(section).find(|(kind, ..)| *kind == SHT_DYNSYM);
    let Some((_, symbols, names)) = dynamic else {
        return found;
    };
    let Some((_, names, _)) = section(names) else {
        return found;
    };
    for symbol in symbols.chunks_exact(SYMBOL) {
        let field = |at: usize, length: usize| {
            let mut raw = [0u8; 8];
            raw[..length].copy_from_slice(&symbol[at..at + length]);
            u64::from_le_bytes(raw)
        };
        let (name, kind, part) = (field(0, 4) as usize, field(4, 1) & 15, field(6, 2));
        let function = Function {
            offset: field(8, 8),
            length: field(16, 8),
        };
        let end = function.offset.checked_add(function.length);
        if kind != STT_FUNC || part == 0 || end.is_none_or(|end| end > elf.len() as u64) {
            continue;
        }
        let name = names.get(name..).and_then(|rest| rest.split(|byte| *byte == 0).next());
        if let Some(name) = name.and_then(|name| std::str::from_utf8(name).ok()) {
            found.insert(name.to_owned(), function);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own() -> Vec<u8> {
        let maps = ProcDir::open(std::process::id() as i32).unwrap().maps().unwrap();
        let map = maps.iter().find(|map| map.kind() == MapKind::Vdso).unwrap();
        let mut code = vec![0; (map.end - map.start) as usize];
        let memory = File::open("/proc/self/mem").unwrap();
        memory.read_exact_at(&mut code, map.start).unwrap();
        code
    }

    #[test]
    fn the_functions_of_this_kernels_vdso_are_found() {
        let found = functions(&own());
        for name in [
            "__vdso_clock_gettime",
            "__vdso_gettimeofday",
            "__vdso_time",
            "__vdso_getcpu",
        ] {
            let function = found.get(name).unwrap_or_else(|| panic!("{name} is not in {found:?}"));
            assert!(
                function.offset > 0 && function.length >= arch::JUMP_SIZE as u64,
                "{name}: {function:?}"
            );
        }
    }

    #[test]
    fn what_a_vdso_lacks_is_a_system_call_and_what_is_not_known_is_refused() {
        let function = |offset| Function { offset, length: 64 };
        let named = |all: &[(&str, u64)]| -> BTreeMap<String, Function> {
            let all = all.iter();
            all.map(|(name, offset)| ((*name).to_owned(), function(*offset)))
                .collect()
        };
        let here = named(&[("__vdso_time", 0x100), ("getcpu", 0x200)]);
        let old = named(&[
            ("__vdso_time", 0x700),
            ("__vdso_getrandom", 0x800),
            ("__vdso_getcpu", 0x900),
            ("getcpu", 0x900),
        ]);
        let found = substitutes(&old, &here).unwrap();
        assert_eq!(found.len(), 3);
        assert_eq!(found[&0x700], Substitute::Jump(0x100));
        assert_eq!(
            found[&0x800],
            Substitute::Code(arch::without_vdso("getrandom").unwrap())
        );
        assert_eq!(found[&0x900], Substitute::Jump(0x200));
        let unknown = named(&[("__vdso_time", 0x700), ("__vdso_of_tomorrow", 0x800)]);
        assert_eq!(
            substitutes(&unknown, &here),
            Err("it has no __vdso_of_tomorrow".to_owned())
        );
        assert!(substitutes(&named(&[]), &here).is_err());
        let mut small = old.clone();
        small.get_mut("__vdso_getrandom").unwrap().length = 16;
        assert!(substitutes(&small, &here).is_err());
    }

    #[test]
    fn what_is_no_vdso_has_no_functions() {
        let good = own();
        assert!(functions(&[]).is_empty());
        assert!(functions(&good[..100]).is_empty());
        // Whatever its numbers are, it is looked at without a panic.
        for at in 0..good.len().min(0x200) {
            for byte in [0, 0x7f, 0xff] {
                let mut bad = good.clone();
                bad[at] = byte;
                let _ = functions(&bad);
            }
        }
        let table = u64::from_le_bytes(good[0x28..0x30].try_into().unwrap()) as usize;
        for at in table..good.len() {
            let mut bad = good.clone();
            bad[at] = 0xff;
            let _ = functions(&bad);
        }
    }
}
