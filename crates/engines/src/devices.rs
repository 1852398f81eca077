//! Plug-ins for devices (LBNL-2.4.10): files of `devices.d` that say which devices a job may have open although the
//! native engine does not know them, and which program saves and restores their state.

use std::ffi::OsString;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use cpr_native::devices::DevicePlugins;
use cpr_native::policy::FileRule;
use cpr_types::{Context, Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};

use crate::configuration::{Problem, command, directories, files};
use crate::program::Program;
use crate::property::is_word;

/// Where devices are described in a directory of configuration.
const DEVICES: &str = "devices.d";
/// Most of a device's state, bytes: it is handed over as an argument.
const MOST_STATE: usize = 64 << 10;
/// How long a program may take where nothing else is said, seconds.
const TIME_LIMIT_S: u32 = 10;

/// What is said of devices in one file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct DevicePlugin {
    /// Its name, which images carry.
    pub name: String,
    /// What it is for, in one line.
    #[serde(default)]
    pub description: String,
    /// Paths of device files, with wildcards as in [`FileRule::parse`].
    pub paths: Vec<String>,
    /// The program that saves and restores their state, with its arguments. None where there is nothing but to open
    /// the device again.
    #[serde(default)]
    pub program: Vec<String>,
    /// How long it may take each time, seconds.
    #[serde(default = "time_limit")]
    pub time_limit_s: u32,
    /// The file it was read from.
    #[serde(skip)]
    pub file: PathBuf,
}

fn time_limit() -> u32 {
    TIME_LIMIT_S
}

impl DevicePlugin {
    /// As a file of `devices.d` has it.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] where the text describes no plug-in.
    pub fn parse(text: &str) -> Result<DevicePlugin> {
        let plugin: DevicePlugin = toml::from_str(text).map_err(|error| {
            let text = format!("not a plug-in for devices: {}", error.message());
            Error::new(ErrorKind::Usage, text).with_hint("see docs/devices.md")
        })?;
        let wrong = |what: String| Err(Error::new(ErrorKind::Usage, what));
        if !is_word(&plugin.name) {
            return wrong(format!("{:?} cannot be the name of a plug-in", plugin.name));
        }
        if plugin.paths.is_empty() {
            return wrong(format!("plug-in {}: it is for no paths", plugin.name));
        }
        if plugin.time_limit_s == 0 {
            return wrong(format!("plug-in {}: time-limit-s is 0", plugin.name));
        }
        for path in &plugin.paths {
            if !path.starts_with('/') {
                return wrong(format!("plug-in {}: {path:?} does not begin with /", plugin.name));
            }
            FileRule::parse(&format!("{path}=check"), "/")?;
        }
        Ok(plugin)
    }

    fn is_for(&self, path: &Path) -> bool {
        self.paths.iter().any(|pattern| {
            let rule = FileRule {
                pattern: pattern.clone(),
                content: None,
                truncate: None,
            };
            rule.is_about(path.as_os_str().as_bytes())
        })
    }

    /// Runs the program with the device as its standard input; gives what it prints.
    fn run(&self, verb: &str, path: &Path, device: BorrowedFd<'_>, state: Option<&str>) -> Result<String> {
        let mut command = command(&self.program, Some(&self.file));
        command.extend([OsString::from(verb), path.into()]);
        command.extend(state.map(OsString::from));
        let device = device
            .try_clone_to_owned()
            .context(|| format!("hand {} over", path.display()))?;
        let limit = Duration::from_secs(self.time_limit_s.into());
        let lines = Program::run_on(&command, device, Instant::now() + limit)?;
        let said = lines.join("\n");
        if said.len() > MOST_STATE || said.contains('\0') {
            let text = format!("what it has said is no text of at most {} KiB", MOST_STATE >> 10);
            return Err(Error::new(ErrorKind::Unsupported, text));
        }
        Ok(said)
    }
}

/// All plug-ins for devices that a site and a user have.
#[derive(Debug, Default)]
pub struct Devices {
    plugins: Vec<DevicePlugin>,
    /// Files that could not be used.
    pub problems: Vec<Problem>,
}

impl Devices {
    /// A user's go before a site's where they have the same name, or are for the same device.
    pub fn load() -> Devices {
        let mut devices = Devices::default();
        for directory in directories() {
            for (file, text) in files(&directory.join(DEVICES), &mut devices.problems) {
                match DevicePlugin::parse(&text) {
                    Ok(plugin) if devices.plugins.iter().any(|other| other.name == plugin.name) => {
                        let text = format!("there is a plug-in {} already", plugin.name);
                        let error = Error::new(ErrorKind::AlreadyExists, text);
                        devices.problems.push(Problem { path: file, error });
                    }
                    Ok(plugin) => devices.plugins.push(DevicePlugin { file, ..plugin }),
                    Err(error) => devices.problems.push(Problem { path: file, error }),
                }
            }
        }
        devices
    }

    /// All of them, the most important first.
    pub fn plugins(&self) -> &[DevicePlugin] {
        &self.plugins
    }

    fn named(&self, name: &str, path: &Path) -> Result<&DevicePlugin> {
        let named = self.plugins.iter().find(|plugin| plugin.name == name);
        let plugin = named.ok_or_else(|| {
            let error = Error::new(
                ErrorKind::Incompatible,
                format!("there is no device plug-in {name} here"),
            );
            error.with_hint("`cpr devices` lists what there is")
        })?;
        if !plugin.is_for(path) {
            let text = format!("the device plug-in {name} is not for {}", path.display());
            return Err(Error::new(ErrorKind::Incompatible, text));
        }
        Ok(plugin)
    }
}

impl DevicePlugins for Devices {
    fn find(&self, path: &Path) -> Option<String> {
        let plugin = self.plugins.iter().find(|plugin| plugin.is_for(path))?;
        Some(plugin.name.clone())
    }

    fn require(&self, plugin: &str, path: &Path) -> Result<()> {
        self.named(plugin, path).map(drop)
    }

    fn save(&self, plugin: &str, path: &Path, device: BorrowedFd<'_>) -> Result<String> {
        let plugin = self.named(plugin, path)?;
        match plugin.program.is_empty() {
            true => Ok(String::new()),
            false => plugin.run("save", path, device, None),
        }
    }

    fn restore(&self, plugin: &str, path: &Path, device: BorrowedFd<'_>, state: &str) -> Result<()> {
        let plugin = self.named(plugin, path)?;
        match plugin.program.is_empty() {
            true => Ok(()),
            false => plugin.run("restore", path, device, Some(state)).map(drop),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_plugin_is_refused_with_what_is_wrong() {
        for (text, wrong) in [
            ("name = 'a b'\npaths = ['/dev/x']", "cannot be the name"),
            ("name = 'a'\npaths = []", "for no paths"),
            ("name = 'a'\npaths = ['dev/x']", "does not begin with /"),
            ("name = 'a'\npaths = ['/dev/[']", "without its end"),
            ("name = 'a'\npaths = ['/dev/x']\ntime-limit-s = 0", "time-limit-s"),
            ("name = 'a'\npaths = ['/dev/x']\nprogramme = ['y']", "programme"),
        ] {
            let error = DevicePlugin::parse(text).unwrap_err();
            assert!(error.chain().contains(wrong), "{text}: {}", error.chain());
        }
        let plugin = DevicePlugin::parse("name = 'a'\npaths = ['/dev/x*']").unwrap();
        assert!(plugin.is_for(Path::new("/dev/x1")) && !plugin.is_for(Path::new("/dev/x1/y")));
    }
}
