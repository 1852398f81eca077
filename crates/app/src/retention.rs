//! Which generations go: none that another one needs, and never the newest complete one.

use std::collections::BTreeSet;
use std::path::Path;

use cpr_types::{Context, Error, ErrorKind, Result};

use crate::directory;
use crate::store::{GenerationInfo, GenerationState, Store, now_ns};

impl Store {
    /// Removes what the options say is no longer kept, and incomplete generations older than the newest complete one.
    ///
    /// # Errors
    /// Something cannot be removed.
    pub fn retain(&self) -> Result<()> {
        let all = self.generations()?;
        let sound = |info: &&GenerationInfo| {
            info.state == GenerationState::Complete && !self.unsound.contains(&info.generation)
        };
        let complete: Vec<&GenerationInfo> = all.iter().filter(sound).collect();
        let Some(newest) = complete.last().map(|info| info.generation) else {
            return Ok(());
        };
        let first = self
            .options
            .keep
            .map_or(0, |keep| complete.len().saturating_sub(keep as usize));
        let now = now_ns();
        let lives = |info: &GenerationInfo| {
            let own = info.lifetime_s.map(std::time::Duration::from_secs);
            let lifetime = own.or(self.options.lifetime);
            lifetime.is_none_or(|lifetime| u128::from(now.saturating_sub(info.created_ns)) < lifetime.as_nanos())
        };
        let kept = complete[first..]
            .iter()
            .filter(|info| info.generation == newest || lives(info));
        let mut needed: BTreeSet<u64> = BTreeSet::new();
        for info in kept {
            needed.insert(info.generation);
            needed.extend(&info.needs);
        }
        for info in &all {
            // One that is damaged may be all that is left of something: it is left to its owner.
            let goes = match info.state {
                GenerationState::Complete => sound(&info) && !needed.contains(&info.generation),
                GenerationState::Incomplete => info.generation < newest && !needed.contains(&info.generation),
                GenerationState::Damaged => false,
            };
            if goes {
                self.remove(info.generation)?;
            }
        }
        Ok(())
    }

    /// Removes a generation.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`]; [`ErrorKind::InUse`] when another generation needs it.
    pub fn free(&self, generation: u64) -> Result<()> {
        self.generation(generation)?;
        let needs = |info: &&GenerationInfo| info.needs.contains(&generation);
        if let Some(other) = self.generations()?.iter().find(needs) {
            let text = format!("generation {} refers to generation {generation}", other.generation);
            return Err(Error::new(ErrorKind::InUse, text).with_hint("free that one first"));
        }
        self.remove(generation)
    }

    /// Removes all generations, whatever state they are in, with all that is known of them. The next one that is
    /// written has the number it would have had.
    ///
    /// # Errors
    /// Something cannot be removed.
    pub fn forget(&mut self) -> Result<()> {
        // What refers to others goes before them.
        for generation in self.numbers()?.into_iter().rev() {
            self.remove(generation)?;
        }
        self.forget_basis();
        self.routed.clear();
        Ok(())
    }

    /// First it counts no more, then its name goes, then its files.
    fn remove(&self, generation: u64) -> Result<()> {
        let place = self.place(generation);
        let what = || format!("remove generation {generation} of {}", self.options.name);
        let gone = self
            .directory
            .join(format!(".gone-{generation}-{}", std::process::id()));
        match std::fs::rename(&place, &gone) {
            Ok(()) => {}
            // Another rank was quicker.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error).context(what),
        }
        directory::sync(&self.directory)?;
        remove_all(&gone).context(what)
    }
}

fn remove_all(path: &Path) -> std::io::Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}
