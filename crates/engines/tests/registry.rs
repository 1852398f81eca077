//! Descriptors, classes and the choice among engines, with directories of configuration as a site or user has them.
#![allow(clippy::unwrap_used, reason = "a test")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use cpr_engines::{Descriptor, Probe, Registry, Request, Verdict};
use cpr_types::ErrorKind;

/// A directory of configuration.
struct Config {
    directory: tempfile::TempDir,
}

impl Config {
    fn new() -> Config {
        let directory = tempfile::tempdir().unwrap();
        for name in ["engines.d", "classes.d"] {
            fs::create_dir(directory.path().join(name)).unwrap();
            set_mode(&directory.path().join(name), 0o755);
        }
        Config { directory }
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.directory.path().join(name);
        fs::write(&path, text).unwrap();
        set_mode(&path, 0o644);
        path
    }

    fn engine(&self, name: &str, rest: &str) -> PathBuf {
        let text = format!("name = \"{name}\"\ndriver = \"native\"\n{rest}");
        self.write(&format!("engines.d/{name}.toml"), &text)
    }

    fn load(&self) -> Registry {
        Registry::load_from(&[self.directory.path().to_path_buf()]).unwrap()
    }
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn good(_: &Descriptor) -> Probe {
    Probe {
        version: None,
        reason: None,
    }
}

fn problem(registry: &Registry, file: &str) -> String {
    let problem = registry.problems.iter().find(|p| p.path.ends_with(file));
    problem.unwrap_or_else(|| panic!("no problem of {file}")).error.chain()
}

// GCA-CLASS-8
#[test]
fn a_fresh_installation_has_classes_and_the_native_engine() {
    let registry = Registry::load_from(&[]).unwrap();
    let basic = registry.class("basic").unwrap();
    assert!(!basic.conditions.is_empty());
    let native = registry.engine("native").unwrap();
    assert!(native.member_of(registry.classes()).contains(&"basic"));
    assert!(!native.member_of(registry.classes()).contains(&"virtual-machine"));
    assert!(registry.problems.is_empty());
    assert!(native.probe().works(), "{:?}", native.probe());
}

// GCA-CLASS-1, GCA-CLASS-2, GCA-CLASS-3, GCA-CLASS-5
#[test]
fn classes_are_defined_freely_and_membership_follows_from_properties() {
    let config = Config::new();
    config.write(
        "classes.d/piped.toml",
        "name = \"piped-threads\"\n[requires]\nthreads = \"yes\"\npipes = \"yes\"\n",
    );
    config.write(
        "classes.d/invented.toml",
        "name = \"blue\"\n[requires]\ncolour = \"blue\"\n",
    );
    config.engine("one", "[properties]\nthreads = \"yes\"\npipes = \"yes\"\n");
    config.engine("two", "[properties]\nthreads = \"yes\"\ncolour = [\"red\", \"blue\"]\n");
    let registry = config.load();
    let members = |name: &str| registry.engine(name).unwrap().member_of(registry.classes());
    assert_eq!(members("one"), ["piped-threads"]);
    // Two descriptors of one checkpointer are in different classes.
    assert_eq!(members("two"), ["blue"]);
    let native = members("native");
    assert!(native.len() >= 4 && native.contains(&"piped-threads"), "{native:?}");
}

// GCA-CLASS-4
#[test]
fn joining_a_class_without_its_properties_is_refused() {
    let config = Config::new();
    config.engine(
        "liar",
        "classes = [\"basic\"]\n[properties]\nprograms = \"any\"\nprocesses = \"tree\"\n",
    );
    config.engine("lost", "classes = [\"nowhere\"]\n");
    let registry = config.load();
    assert_eq!(registry.engine("liar").unwrap_err().kind(), ErrorKind::NotFound);
    let told = problem(&registry, "liar.toml");
    assert!(told.contains("class basic") && told.contains("files=regular"), "{told}");
    let told = problem(&registry, "lost.toml");
    assert!(told.contains("no class nowhere"), "{told}");
}

// GCA-CTS-14, GCA-CTS-26, GCA-CLASS-6
#[test]
fn the_choice_is_by_what_is_needed() {
    let config = Config::new();
    config.engine(
        "here",
        "restart = \"here\"\nimages = \"newest\"\n[properties]\nthreads = \"yes\"\n",
    );
    config.engine("own", "trigger = \"own\"\n[properties]\ncolour = \"blue\"\n");
    let registry = config.load();
    let choose = |request: &Request| {
        let choice = registry.choose(request, good).unwrap();
        choice.engine.map(|engine| engine.name.clone())
    };
    let need = |needs: &[&str]| Request {
        needs: needs.iter().map(|text| text.parse().unwrap()).collect(),
        ..Request::default()
    };
    assert_eq!(choose(&Request::default()).as_deref(), Some("native"));
    assert_eq!(choose(&need(&["threads=yes"])).as_deref(), Some("native"));
    assert_eq!(choose(&need(&["threads=yes", "restart=here"])).as_deref(), Some("here"));
    assert_eq!(choose(&need(&["images=newest"])).as_deref(), Some("here"));
    assert_eq!(choose(&need(&["trigger=own", "colour=blue"])).as_deref(), Some("own"));
    assert_eq!(choose(&need(&["trigger=own"])).as_deref(), Some("self-checkpointing"));
    assert_eq!(choose(&need(&["colour=blue", "threads=yes"])), None);
    let basic = Request {
        classes: vec!["basic".to_string()],
        ..Request::default()
    };
    assert_eq!(choose(&basic).as_deref(), Some("native"));
    let missing = |request: &Request| registry.choose(request, good).unwrap_err().kind();
    let nobody = Request {
        engine: Some("nobody".to_string()),
        ..Request::default()
    };
    assert_eq!(missing(&nobody), ErrorKind::NotFound);
    let nowhere = Request {
        classes: vec!["nowhere".to_string()],
        ..Request::default()
    };
    assert_eq!(missing(&nowhere), ErrorKind::NotFound);
}

// GCA-CS-3
#[test]
fn a_refusal_names_the_limit_and_engines_that_do_not_work_are_passed_over() {
    let config = Config::new();
    config.engine("first", "[properties]\ncolour = \"blue\"\nsockets = \"no\"\n");
    config.engine("second", "[properties]\ncolour = \"blue\"\n");
    let registry = config.load();
    let request = |text: &str| Request {
        needs: vec![text.parse().unwrap()],
        ..Request::default()
    };
    let broken = |engine: &Descriptor| Probe {
        version: None,
        reason: (engine.name == "first").then(|| "it is out of paint".to_string()),
    };
    let blue = request("colour=blue");
    let choice = registry.choose(&blue, broken).unwrap();
    assert_eq!(choice.require().unwrap().name, "second");
    let verdicts: Vec<_> = choice
        .considered
        .iter()
        .map(|c| (c.engine.as_str(), &c.verdict))
        .collect();
    assert!(matches!(verdicts[0], ("native", Verdict::Unfit(_))), "{verdicts:?}");
    assert_eq!(
        verdicts[verdicts.len() - 2],
        ("first", &Verdict::Broken("it is out of paint".to_string()))
    );
    assert_eq!(verdicts[verdicts.len() - 1], ("second", &Verdict::Chosen));
    let sockets = Request {
        engine: Some("first".to_string()),
        ..request("sockets=yes")
    };
    let refusal = registry.choose(&sockets, good).unwrap().require().unwrap_err();
    assert_eq!(refusal.kind(), ErrorKind::Unsupported);
    assert!(
        refusal.chain().contains("it has sockets=no, not yes"),
        "{}",
        refusal.chain()
    );
}

#[test]
fn files_that_are_wrong_harm_nothing_else() {
    let config = Config::new();
    config.engine("good", "");
    config.write("engines.d/garbage.toml", "\u{1}[[[");
    config.write(
        "engines.d/typo.toml",
        "name = \"typo\"\ndriver = \"native\"\nclases = []\n",
    );
    config.write("engines.d/driver.toml", "name = \"odd\"\ndriver = \"magic\"\n");
    config.write("engines.d/name.toml", "name = \"../x\"\ndriver = \"native\"\n");
    config.write(
        "engines.d/implied.toml",
        "name = \"x\"\ndriver = \"native\"\n[properties]\ntrigger = \"own\"\n",
    );
    config.write("engines.d/native.toml", "name = \"native\"\ndriver = \"native\"\n");
    config.write("engines.d/big.toml", &"#".repeat(100_000));
    config.write("engines.d/ignored.txt", "\u{1}");
    config.write("classes.d/empty.toml", "name = \"empty\"\n[requires]\n");
    config.write("classes.d/basic.toml", "name = \"basic\"\n[requires]\na = \"b\"\n");
    let open = config.engine("open", "");
    set_mode(&open, 0o666);
    let registry = config.load();
    assert!(registry.engine("good").is_ok());
    // Besides it only those that are compiled in.
    assert_eq!(registry.engines().len(), 7);
    assert_eq!(registry.problems.len(), 10, "{:?}", registry.problems);
    assert!(problem(&registry, "typo.toml").contains("clases"));
    assert!(problem(&registry, "open.toml").contains("others can write"));
    assert!(problem(&registry, "classes.d/basic.toml").contains("already"));
    assert!(problem(&registry, "engines.d/native.toml").contains("already"));
}

#[test]
fn a_directory_others_can_write_to_is_not_trusted() {
    let config = Config::new();
    config.engine("good", "");
    set_mode(&config.directory.path().join("engines.d"), 0o777);
    let registry = config.load();
    assert!(registry.engine("good").is_err());
    assert!(problem(&registry, "good.toml").contains("not trusted"));
}

#[test]
fn the_first_directory_wins() {
    let (user, site) = (Config::new(), Config::new());
    user.engine("same", "description = \"the user's\"\n");
    site.engine("same", "description = \"the site's\"\n");
    let directories = [&user, &site].map(|config| config.directory.path().to_path_buf());
    let registry = Registry::load_from(&directories).unwrap();
    assert_eq!(registry.engine("same").unwrap().description, "the user's");
}

/// The text of a document.
fn document(name: &str) -> (PathBuf, String) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs").join(name);
    let text = fs::read_to_string(&path).unwrap();
    (path, text)
}

#[test]
fn the_descriptors_and_classes_of_the_document_are_good() {
    let config = Config::new();
    let (_, text) = document("engines.md");
    for (number, block) in text.split("```toml\n").skip(1).enumerate() {
        let block = block.split("```").next().unwrap();
        let kind = if block.contains("[requires]") {
            "classes.d"
        } else {
            "engines.d"
        };
        config.write(&format!("{kind}/{number}.toml"), block);
    }
    let registry = config.load();
    assert!(registry.problems.is_empty(), "{:?}", registry.problems);
    assert!(registry.engine("batch").is_ok() && registry.class("piped-threads").is_ok());
}

/// `UPDATE_REFERENCE=1` renews the table.
// XGCP-TL-7
#[test]
fn the_table_of_the_document_is_that_of_the_descriptors() {
    let registry = Registry::load_from(&[]).unwrap();
    let engines = registry.engines();
    let row = |cells: &mut dyn Iterator<Item = String>| format!("| {} |\n", cells.collect::<Vec<_>>().join(" | "));
    let head = |engine: &Descriptor| format!("`{}`", engine.name);
    let mut table = row(&mut ["Property".to_string()].into_iter().chain(engines.iter().map(head)));
    table.push_str(&row(&mut (0..=engines.len()).map(|_| "---".to_string())));
    let keys: std::collections::BTreeSet<&String> = engines.iter().flat_map(|e| e.properties.keys()).collect();
    for key in keys {
        let cell = |engine: &Descriptor| {
            engine
                .properties
                .get(key)
                .map_or_else(|| "–".to_string(), ToString::to_string)
        };
        table.push_str(&row(&mut [format!("`{key}`")]
            .into_iter()
            .chain(engines.iter().map(cell))));
    }
    let classes = |engine: &Descriptor| engine.member_of(registry.classes()).join(" ");
    table.push_str(&row(&mut ["Classes".to_string()]
        .into_iter()
        .chain(engines.iter().map(classes))));
    let (path, text) = document("engines.md");
    let (before, rest) = text.split_once("<!-- table: begin -->\n").unwrap();
    let (found, after) = rest.split_once("<!-- table: end -->").unwrap();
    if std::env::var_os("UPDATE_REFERENCE").is_some() {
        let renewed = format!("{before}<!-- table: begin -->\n{table}<!-- table: end -->{after}");
        fs::write(path, renewed).unwrap();
    } else {
        assert_eq!(found, table);
    }
}
