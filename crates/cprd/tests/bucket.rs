//! Images in a bucket of a real S3 server: `s3s-fs`, as `cargo install s3s-fs --features binary` makes it.

#![allow(clippy::unwrap_used)]

mod support;

use std::fs;

use support::s3::Server;
use support::*;

/// A program that has so many MiB of memory that cannot be made smaller, and counts.
fn heavy(mib: u32, last: u32) -> [String; 3] {
    let script = format!(
        "import os, time\nheld = os.urandom({mib} << 20)\nsum = hash(held)\nfor i in range(1, {last} + 1):\n    \
         print(i, flush=True)\n    time.sleep(0.05)\nassert hash(held) == sum\n"
    );
    ["python3".into(), "-c".into(), script]
}

// GFD93-CT-2, GFD93-WF-2.5, GFD93-WF-2.6, GCA-CTS-7, GCA-CTS-9, GFD93-CT-3, GFD93-WF-4.4, GFD93-WF-4.5, GCA-UC-5.3.8
#[test]
fn images_go_to_a_bucket_and_come_back_from_it_and_nothing_stays_there_that_is_not_needed() {
    let mut site = Site::new();
    let Some(server) = Server::start(&site) else {
        return skipped("images in a bucket: s3s-fs is not installed");
    };
    let configure = |site: &Site, secret: &str| {
        fs::write(site.path("keys"), format!("ACCESS\n{secret}\n")).unwrap();
        site.configure_all("store = 's3://images/grid'");
        let config = fs::read_to_string(site.path("all.toml")).unwrap();
        let address = &server.address;
        site.configure(
            "all.toml",
            &format!(
                "{config}store = 's3://images/grid'\n[s3]\nendpoint = 'http://{address}'\nkey_file = 'DIR/keys'\n"
            ),
        );
    };
    configure(&site, "SECRET");
    site.start("all", "all");
    // More than one part of an upload, and less than one.
    let large = site.submit("large", &[], &heavy(40, 200));
    let small = site.submit("small", &[], &counter(200));
    let object = |id: &serde_json::Value| site.path(&format!("s3/images/grid/{id}.cpr"));
    let held = |id: &serde_json::Value| site.path(&format!("node/users/{NOBODY}/images/{id}.cpr"));
    for (id, name) in [(&large, "large"), (&small, "small")] {
        site.wait_for_count(name, 5);
        let made = site.json(&["checkpoint", &format!("@{id}")]);
        let places: Vec<&str> = made["locations"]
            .as_array()
            .unwrap()
            .iter()
            .map(|place| place["node"].as_str().unwrap())
            .collect();
        assert_eq!(places, ["n1", ""], "{made}{}", site.told());
        assert_eq!(
            fs::read(object(&made["id"])).unwrap(),
            fs::read(held(&made["id"])).unwrap()
        );
        let saved = site.json(&["suspend", &format!("@{id}")]);
        assert_eq!(saved["state"], "suspended");
    }
    // The disk of the node is lost: they go on from the bucket.
    let newest = |id: &str| {
        let list = site.json(&["checkpoints", id]);
        list["checkpoints"].as_array().unwrap().last().unwrap()["id"].clone()
    };
    for id in [&large, &small] {
        let newest = newest(id);
        fs::remove_file(held(&newest)).unwrap();
        wait_until("the loss is noticed", || {
            let events = site.text(&["events", "--job", id, "--kind", "checkpoint.copy-lost"]);
            events.contains(&format!("checkpoint {newest} "))
        });
        site.text(&["recover", id]);
        site.wait_for_state(id, "running");
        assert_eq!(site.job(id)["from"], newest);
    }
    for (id, name) in [(&large, "large"), (&small, "small")] {
        let ended = site.wait_for_state(id, "finished");
        assert_eq!(ended["exit_code"], 0);
        assert_eq!(site.output(name), counted(200));
    }
    wait_until("the bucket is empty", || {
        fs::read_dir(site.path("s3/images/grid")).map_or(0, Iterator::count) == 0
    });
    // With a wrong key nothing gets there, the job goes on, and it is said why.
    fs::write(site.path("keys"), "ACCESS\nWRONG\n").unwrap();
    let id = site.submit("refused", &[], &counter(10_000));
    site.wait_for_count("refused", 5);
    let made = site.json(&["checkpoint", &format!("@{id}")]);
    assert_eq!(made["locations"].as_array().unwrap().len(), 1, "{made}");
    assert!(!object(&made["id"]).exists());
    let log = fs::read_to_string(site.path("all.log")).unwrap();
    assert!(log.contains("is not in the store") && log.contains("403"), "{log}");
    assert!(!log.contains("WRONG") && !log.contains("Signature="), "{log}");
    assert_eq!(site.job(&id)["incarnation"], 1, "the job is not disturbed");
    site.text(&["cancel", &id]);
}

// GCA-SEC-6, GCA-CTS-32
#[test]
fn images_in_a_store_are_sealed_and_keys_can_be_replaced() {
    let mut site = Site::new();
    let (old, new) = ("1f".repeat(32), "2e".repeat(32));
    fs::create_dir(site.path("store")).unwrap();
    site.configure_all("store = 'DIR/store'");
    let config = fs::read_to_string(site.path("all.toml")).unwrap();
    let source = "[encryption]\nkey_command = ['cat', 'DIR/keys']\n";
    site.configure("all.toml", &format!("{config}store = 'DIR/store'\n{source}"));
    fs::write(site.path("keys"), &old).unwrap();
    site.start("all", "all");
    wait_until("the node says so", || {
        site.json(&["nodes"])["nodes"][0]["info"]["properties"]["store-encrypted"] == "yes"
    });
    // Whoever wants that asks for it.
    let id = site.submit("out", &["--require", "store-encrypted=yes"], &counter(150));
    site.wait_for_count("out", 5);
    let saved = site.json(&["suspend", &format!("@{id}")]);
    assert_eq!(saved["state"], "suspended");
    let list = site.json(&["checkpoints", &id]);
    let made = list["checkpoints"].as_array().unwrap().last().unwrap()["id"].clone();
    let stored = site.path(&format!("store/{made}.cpr"));
    let held = site.path(&format!("node/users/{NOBODY}/images/{made}.cpr"));
    wait_until("it is in the store", || stored.exists());
    let (there, here) = (fs::read(&stored).unwrap(), fs::read(&held).unwrap());
    assert!(there.starts_with(b"gridcpr sealed 1") && there.len() > here.len());
    let shared = here.chunks(64).filter(|part| part.iter().any(|byte| *byte != 0));
    let found = shared
        .take(50)
        .filter(|part| there.windows(part.len()).any(|at| at == *part));
    assert_eq!(found.count(), 0, "nothing of the image is seen in it");
    // With another key it cannot be had, and is not given up for that; with both it can.
    site.kill("all");
    fs::write(site.path("keys"), &new).unwrap();
    site.start("all", "all");
    fs::remove_file(&held).unwrap();
    wait_until("the loss is noticed", || {
        let events = site.text(&["events", "--job", &id, "--kind", "checkpoint.copy-lost"]);
        events.contains(&format!("checkpoint {made} "))
    });
    site.text(&["recover", &id]);
    wait_until("it is said why it cannot be had", || {
        let log = fs::read_to_string(site.path("all.log")).unwrap();
        log.contains("is encrypted with a key that is not known here")
    });
    site.kill("all");
    fs::write(site.path("keys"), format!("{new}\n{old}\n")).unwrap();
    site.start("all", "all");
    let ended = site.wait_for_state(&id, "finished");
    assert_eq!(ended["from"], made);
    assert_eq!(site.output("out"), counted(150));
}
