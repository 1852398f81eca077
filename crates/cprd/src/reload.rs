//! The configuration read again while `cprd` runs: what holds at once, and what needs a restart.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use cpr_types::{Context, Result};
use tokio::sync::watch;

use crate::config::Config;
use crate::log;

/// The configuration as it is now.
pub type Current = watch::Receiver<Arc<Config>>;

/// The configuration in use, with those settings of a new one that can change at any time.
fn merged(old: &Config, new: &Config) -> Config {
    let mut merged = old.clone();
    merged.grid.operators = new.grid.operators.clone();
    merged.grid.copies = new.grid.copies;
    merged.grid.preempt = new.grid.preempt;
    merged.grid.slice_s = new.grid.slice_s;
    merged.grid.quota_mb = new.grid.quota_mb;
    merged.grid.quotas_mb = new.grid.quotas_mb.clone();
    merged.grid.keep_records_days = new.grid.keep_records_days;
    merged.node.slots = new.node.slots;
    merged.node.memory_mb = new.node.memory_mb;
    merged.node.properties = new.node.properties.clone();
    merged.node.transfer_mb_per_s = new.node.transfer_mb_per_s;
    merged.verify = new.verify.clone();
    merged.grid.step_s = new.grid.step_s;
    merged.grid.save_s = new.grid.save_s;
    merged.hooks = new.hooks.clone();
    merged.detector = new.detector.clone();
    merged
}

/// Every setting by its name, as `grid.copies`.
fn settings(config: &Config) -> Result<BTreeMap<String, toml::Value>> {
    let table: toml::Table = config.to_text()?.parse().map_err(|error| {
        cpr_types::Error::new(cpr_types::ErrorKind::Internal, "compare settings").with_source(error)
    })?;
    let mut settings = BTreeMap::new();
    for (part, value) in table {
        match value {
            toml::Value::Table(values) => {
                settings.extend(
                    values
                        .into_iter()
                        .map(|(name, value)| (format!("{part}.{name}"), value)),
                );
            }
            value => {
                settings.insert(part, value);
            }
        }
    }
    Ok(settings)
}

/// Names of settings in which two configurations differ.
fn differences(one: &Config, other: &Config) -> Result<Vec<String>> {
    let (one, other) = (settings(one)?, settings(other)?);
    let names: std::collections::BTreeSet<&String> = one.keys().chain(other.keys()).collect();
    let differ = names.into_iter().filter(|name| one.get(*name) != other.get(*name));
    Ok(differ.cloned().collect())
}

/// Reads the configuration again, and tells all parts; one that is no good changes nothing.
pub fn reload(path: Option<&Path>, current: &watch::Sender<Arc<Config>>) {
    let read = || -> Result<(Config, Vec<String>, Vec<String>)> {
        let new = Config::load(path)?;
        new.check()?;
        let old = current.borrow().clone();
        let merged = merged(&old, &new);
        let (changed, left) = (differences(&old, &merged)?, differences(&merged, &new)?);
        Ok((merged, changed, left))
    };
    match read().context(|| "read the configuration again") {
        Ok((merged, changed, left)) => {
            let list = |names: Vec<String>| {
                if names.is_empty() {
                    "nothing".into()
                } else {
                    names.join(", ")
                }
            };
            if !left.is_empty() {
                log(format!("changed, but needs a restart: {}", list(left)));
            }
            current.send_replace(Arc::new(merged));
            log(format!("configuration read again; changed: {}", list(changed)));
        }
        Err(error) => log(format!("{}; nothing is changed", error.chain())),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_can_change_changes_and_the_rest_is_named() {
        let old = Config::default();
        let mut new = old.clone();
        new.grid.copies = 3;
        new.grid.lease_ms += 1;
        new.node.properties.insert("gpu".into(), "yes".into());
        new.node.slots = Some(2);
        new.grid.store = Some("/x".into());
        let merged = merged(&old, &new);
        assert_eq!(
            differences(&old, &merged).unwrap(),
            ["grid.copies", "node.properties", "node.slots"]
        );
        assert_eq!(differences(&merged, &new).unwrap(), ["grid.lease_ms", "grid.store"]);
    }
}
