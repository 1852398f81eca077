//! `cpr engines`

use cpr_engines::{Descriptor, Probe, Registry};
use cpr_types::Result;
use serde_json::{Value, json};

use crate::args::{Engines, EnginesVerb};
use crate::output::{Output, Table, clean, to_json};

pub fn engines(output: Output, args: &Engines) -> Result<u8> {
    let registry = Registry::load()?;
    if let Some(EnginesVerb::Show { name }) = &args.verb {
        return show(output, &registry, registry.engine(name)?);
    }
    for problem in &registry.problems {
        output.note(format!("{}: {}", problem.path.display(), problem.error.chain()));
    }
    let quiet = output.is_quiet() && !output.is_json();
    let probe = |engine: &Descriptor| match quiet {
        // Names need no probe.
        true => None,
        false => Some(engine.probe()),
    };
    let probed: Vec<_> = registry
        .engines()
        .iter()
        .map(|engine| (engine, probe(engine)))
        .collect();
    let list = probed
        .iter()
        .map(|(engine, probe)| entry(&registry, engine, probe.as_ref()))
        .collect::<Result<Vec<Value>>>()?;
    let problems: Vec<Value> = registry
        .problems
        .iter()
        .map(|problem| json!({"file": problem.path, "reason": problem.error.chain()}))
        .collect();
    output.answer(
        || json!({"engines": list, "problems": problems}),
        || match quiet {
            true => probed.iter().map(|(engine, _)| format!("{}\n", engine.name)).collect(),
            false => table(&registry, &probed),
        },
    )?;
    Ok(0)
}

fn table(registry: &Registry, probed: &[(&Descriptor, Option<Probe>)]) -> String {
    let mut table = Table::new(&["NAME", "DRIVER", "VERSION", "WORKS", "CLASSES"], &[]);
    for (engine, probe) in probed {
        let probe = probe.as_ref();
        table.row([
            engine.name.clone(),
            engine.driver.name().to_string(),
            probe
                .and_then(|probe| probe.version.clone())
                .unwrap_or_else(|| "-".to_string()),
            match probe.and_then(|probe| probe.reason.as_deref()) {
                None => "yes".to_string(),
                Some(reason) => format!("no: {reason}"),
            },
            engine.member_of(registry.classes()).join(","),
        ]);
    }
    table.render()
}

fn entry(registry: &Registry, engine: &Descriptor, probe: Option<&Probe>) -> Result<Value> {
    Ok(json!({
        "name": engine.name,
        "version": probe.and_then(|probe| probe.version.as_ref()),
        "description": engine.description,
        "driver": engine.driver.name(),
        "works": probe.map(Probe::works),
        "reason": probe.and_then(|probe| probe.reason.as_ref()),
        "trigger": engine.trigger,
        "restart": engine.restart,
        "images": engine.images,
        "classes": engine.member_of(registry.classes()),
        "properties": engine
            .properties
            .iter()
            .map(|(key, values)| (key.clone(), json!(values.words())))
            .collect::<serde_json::Map<String, Value>>(),
        "file": to_json(&engine.file)?,
    }))
}

fn show(output: Output, registry: &Registry, engine: &Descriptor) -> Result<u8> {
    let probe = engine.probe();
    let value = entry(registry, engine, Some(&probe))?;
    output.answer(
        || value,
        || {
            let mut text = String::new();
            let mut line = |name: &str, value: &str| text.push_str(&format!("{name:<13}{}\n", clean(value)));
            line("name", &engine.name);
            line("description", &engine.description);
            line("driver", engine.driver.name());
            line("version", probe.version.as_deref().unwrap_or("not known"));
            match &probe.reason {
                None => line("works", "yes"),
                Some(reason) => line("works", &format!("no: {reason}")),
            }
            line("classes", &engine.member_of(registry.classes()).join(" "));
            match &engine.file {
                Some(path) => line("file", &path.display().to_string()),
                None => line("file", "none: it is compiled in"),
            }
            text.push_str("properties\n");
            for (key, values) in &engine.properties {
                text.push_str(&format!("  {key}={values}\n"));
            }
            text
        },
    )?;
    Ok(0)
}
