//! Two servers over one database.

use std::fs;

use super::bucket::make_bucket;
use super::database::Database;
use super::support::fleet::{Fleet, Running};
use super::{shared, unique};

/// The configuration that two servers read.
fn config(fleet: &Fleet, database: &Database) -> String {
    let (url, password) = database.parts();
    let secret = fleet.place("password");
    fs::write(&secret, format!("{password}\n")).unwrap();
    let section = format!(
        "backend = \"postgres\"\nurl = {url:?}\npassword_file = {:?}\n",
        secret.display().to_string()
    );
    let (access, bucket) = (shared::s3().unwrap(), unique());
    make_bucket(&access, &bucket);
    let key = fleet.place("secret-key");
    fs::write(&key, &access.secret_key).unwrap();
    let blob = format!(
        "backend = \"s3\"\nbucket = {bucket:?}\nendpoint = {:?}\naccess_key = {:?}\nsecret_key_file = {:?}\n",
        access.endpoint,
        access.access_key,
        key.display().to_string()
    );
    let path = fleet.place("flames.toml");
    fs::write(&path, format!("[state]\n{section}[queue]\n{section}[blob]\n{blob}")).unwrap();
    path.display().to_string()
}

fn server(fleet: &Fleet, name: &str, config: &str) -> Running {
    fleet.server(name, &["--config", config])
}

pub(crate) fn a_vm_made_at_one_of_two_servers_is_reached_through_the_other() {
    let (fleet, database) = (Fleet::new(), Database::new());
    let config = config(&fleet, &database);
    let (mut a, b) = (server(&fleet, "a", &config), server(&fleet, "b", &config));
    let token = fleet.token(&a);
    let urls = [&a, &b].map(|server| server.told["host_url"].as_str().unwrap().to_owned()).join(",");
    // A token that one server made holds at the other.
    let _one = fleet.host("one", &urls, &token, &["--capacity-vms", "2"]);
    let _two = fleet.host("two", &urls, &token, &["--capacity-vms", "2"]);
    b.has_hosts(2);
    a.import_small_image();
    for (index, vm) in ["v0", "v1", "v2", "v3"].into_iter().enumerate() {
        let (here, there) = if index % 2 == 0 { (&a, &b) } else { (&b, &a) };
        here.sleeper(vm);
        assert_eq!(there.run(&["exec", vm, "--", "echo", "in", vm]).ok(), format!("in {vm}\n"));
    }
    // What both place on two hosts never passes what these offer.
    let hosts = a.run(&["--json", "controllers"]).json();
    for host in hosts.as_array().unwrap() {
        assert_eq!(host["reserved"]["vms"], 2, "{host}");
    }
    let address = a.host_address();
    // With one of them dead the other does everything.
    a.kill();
    for vm in ["v0", "v3"] {
        assert_eq!(b.run(&["exec", vm, "--", "echo", "still"]).ok(), "still\n");
        b.run(&["rm", "-f", vm]).ok();
    }
    b.sleeper("later");
    // It comes back where hosts look for it.
    let a = fleet.server("a", &["--config", &config, "--host-listen", &address]);
    a.answers("later");
    a.answers("v1");
}
