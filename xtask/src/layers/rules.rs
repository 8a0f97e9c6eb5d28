//! The table of who may import whom, as data and one pure function over it.

use std::fmt;

/// The workspace as the rules see it: names, and the direct dependencies between them that end up in a build.
#[derive(Debug, Default)]
pub(crate) struct Graph {
    /// Every package of the workspace, by name.
    pub(crate) packages: Vec<String>,
    /// Every direct normal or build dependency from one of them on another.
    pub(crate) imports: Vec<Import>,
}

/// One direct dependency between two packages of the workspace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Import {
    pub(crate) from: String,
    pub(crate) to: String,
    pub(crate) kind: ImportKind,
}

/// Dev-dependencies are free, so they have no kind here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ImportKind {
    Normal,
    Build,
}

/// What is wrong, and the rule that says so.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Violation {
    /// An import that the table does not have.
    Forbidden { import: Import, rule: String },
    /// A package whose name the table does not know, so that no rule could hold it.
    Homeless { package: String },
}

impl fmt::Display for Violation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Forbidden { import: Import { from, to, kind }, rule } => {
                let kind = match kind {
                    ImportKind::Normal => "normal",
                    ImportKind::Build => "build",
                };
                write!(formatter, "forbidden: {from} -> {to} ({kind} dependency)\n     rule: {from} {rule}")
            }
            Self::Homeless { package } => write!(
                formatter,
                "forbidden: {package} has no place in the house\n     rule: a new kind of crate needs an ADR and a \
                 line in xtask/src/layers/rules.rs"
            ),
        }
    }
}

/// Every import of the graph that the table does not allow, and every package that it does not know.
pub(crate) fn forbidden_edges(graph: &Graph) -> Vec<Violation> {
    let homeless = graph
        .packages
        .iter()
        .filter(|package| Place::of(package).is_none())
        .map(|package| Violation::Homeless { package: package.clone() });
    let forbidden = graph.imports.iter().filter_map(|import| {
        let (from, to) = (Place::of(&import.from)?, Place::of(&import.to)?);
        let permitted = from.imports();
        (!permitted.contain(to))
            .then(|| Violation::Forbidden { import: import.clone(), rule: permitted.to_string() })
    });
    homeless.chain(forbidden).collect()
}

/// The six provider interfaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Interface {
    State,
    Blob,
    Cache,
    Queue,
    Ingress,
    Vmm,
}

const INTERFACES: [(Interface, &str); 6] = [
    (Interface::State, "state"),
    (Interface::Blob, "blob"),
    (Interface::Cache, "cache"),
    (Interface::Queue, "queue"),
    (Interface::Ingress, "ingress"),
    (Interface::Vmm, "vmm"),
];

/// Where a package lives in the house.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// `flames-clock` and `flames-error`: all may import them, and they import nothing.
    Leaf,
    /// What sets a binary's memory allocator (ADR 0018).
    Allocator,
    Model,
    Wire,
    Client,
    Provider(Interface),
    /// What all suites share.
    ConformanceRunner,
    Conformance(Interface),
    Adapter(Interface),
    FirecrackerDriver,
    Firecracker,
    /// What every driver does with its host (ADR 0008).
    Host,
    /// What adapters do with a SQLite file of their own (ADR 0016).
    Sqlite,
    /// What drivers share whose monitors are processes of their host (ADR 0017).
    LocalDrivers,
    Decorate,
    Records,
    Scheduler,
    Service,
    Reconcile,
    Transport,
    Image,
    GuestProtocol,
    GuestAgent,
    Controller,
    /// What runs in simulated machines.
    SimulatedGuest,
    Testbed,
    /// What starts real servers: for tests, benches and xtask.
    TestServers,
    /// What tests of drivers do with real guests (ADR 0017).
    TestGuests,
    Binary,
    /// A harness under `benches/`: may measure anything, and only xtask may import it.
    Bench,
    Xtask,
}

impl Place {
    fn of(package: &str) -> Option<Self> {
        let place = match package {
            "flames" => Self::Binary,
            "xtask" => Self::Xtask,
            "flames-clock" | "flames-error" => Self::Leaf,
            "flames-allocator" => Self::Allocator,
            "flames-model" => Self::Model,
            "flames-wire" => Self::Wire,
            "flames-client" => Self::Client,
            "flames-vmm-firecracker" => Self::FirecrackerDriver,
            "flames-host" => Self::Host,
            "flames-sqlite" => Self::Sqlite,
            "flames-vmm-local" => Self::LocalDrivers,
            "flames-firecracker-api" | "flames-firecracker-jail" | "flames-firecracker-network" => {
                Self::Firecracker
            }
            "flames-conformance-runner" => Self::ConformanceRunner,
            "flames-decorate" => Self::Decorate,
            "flames-records" => Self::Records,
            "flames-scheduler" => Self::Scheduler,
            "flames-service" => Self::Service,
            "flames-reconcile" => Self::Reconcile,
            "flames-transport-http" | "flames-transport-host" | "flames-transport-link" => Self::Transport,
            "flames-image" => Self::Image,
            "flames-guest-protocol" => Self::GuestProtocol,
            "flames-guest-agent" => Self::GuestAgent,
            "flames-controller" => Self::Controller,
            "flames-simulated-guest" => Self::SimulatedGuest,
            "flames-testbed" => Self::Testbed,
            "flames-test-servers" => Self::TestServers,
            "flames-test-guests" => Self::TestGuests,
            _ => return Self::of_a_family(package.strip_prefix("flames-")?),
        };
        Some(place)
    }

    /// The families whose members the table need not name one by one.
    fn of_a_family(name: &str) -> Option<Self> {
        if name.starts_with("bench-") {
            return Some(Self::Bench);
        }
        let (interface, rest) = INTERFACES.iter().find_map(|(interface, word)| {
            let rest = name.strip_prefix(word)?;
            (rest.is_empty() || rest.starts_with('-')).then_some((*interface, rest))
        })?;
        Some(match rest {
            "" => Self::Provider(interface),
            "-conformance" => Self::Conformance(interface),
            _ => Self::Adapter(interface),
        })
    }

    /// What a crate of this place may import directly.
    fn imports(self) -> Permitted {
        use Interface::{Blob, Cache, Ingress, Queue, State, Vmm};
        Permitted::Only(match self {
            Self::Leaf => return Permitted::Nothing,
            Self::Binary => return Permitted::House { but_the_binary: false },
            Self::Testbed => return Permitted::House { but_the_binary: true },
            Self::Bench => return Permitted::HouseAndTestServers,
            Self::Xtask => return Permitted::BenchAndTestServers,
            Self::Allocator
            | Self::Model
            | Self::Provider(_)
            | Self::ConformanceRunner
            | Self::Host
            | Self::Sqlite
            | Self::GuestProtocol => vec![],
            Self::TestServers => vec![Self::ConformanceRunner],
            Self::TestGuests => vec![Self::Provider(Vmm), Self::Image],
            Self::Wire | Self::Scheduler => vec![Self::Model],
            Self::Client => vec![Self::Wire],
            Self::Conformance(interface) => vec![Self::Provider(interface), Self::ConformanceRunner],
            Self::LocalDrivers => vec![Self::Provider(Vmm), Self::Host],
            Self::Adapter(Vmm) => vec![Self::Provider(Vmm), Self::Host, Self::LocalDrivers],
            Self::Adapter(interface @ (State | Queue)) => vec![Self::Provider(interface), Self::Sqlite],
            Self::Adapter(interface) => vec![Self::Provider(interface)],
            Self::Firecracker => vec![Self::Host],
            Self::FirecrackerDriver => {
                vec![Self::Provider(Vmm), Self::Firecracker, Self::Host, Self::LocalDrivers]
            }
            Self::Decorate => INTERFACES.iter().map(|(interface, _)| Self::Provider(*interface)).collect(),
            Self::Records => vec![Self::Model, Self::Provider(State)],
            Self::Service => vec![Self::Model, Self::Records, Self::Scheduler, Self::Provider(Blob)],
            Self::Reconcile => vec![
                Self::Model,
                Self::Records,
                Self::Service,
                Self::Scheduler,
                Self::Provider(Queue),
                Self::Provider(Cache),
                Self::Provider(Ingress),
            ],
            Self::Transport => vec![Self::Service, Self::Wire, Self::Model],
            Self::Image => vec![Self::Provider(Blob)],
            Self::GuestAgent => vec![Self::GuestProtocol],
            Self::SimulatedGuest => {
                vec![Self::Controller, Self::GuestProtocol, Self::Provider(Vmm), Self::Adapter(Vmm)]
            }
            Self::Controller => vec![
                Self::Model,
                Self::Client,
                Self::Image,
                Self::Provider(Vmm),
                Self::Provider(Blob),
                Self::GuestProtocol,
            ],
        })
    }

    fn is_in_the_house(self) -> bool {
        !matches!(self, Self::Bench | Self::Xtask | Self::TestServers | Self::TestGuests)
    }

    fn name(self) -> String {
        let word = |interface| {
            INTERFACES.iter().find(|(known, _)| *known == interface).map_or("", |(_, word)| *word)
        };
        match self {
            Self::Provider(interface) => format!("provider/{}", word(interface)),
            Self::Conformance(interface) => format!("provider/{}/conformance", word(interface)),
            Self::Adapter(interface) => format!("adapters of provider/{}", word(interface)),
            Self::ConformanceRunner => "provider/runner".to_owned(),
            Self::Firecracker => "firecracker/*".to_owned(),
            Self::LocalDrivers => "provider/vmm/local".to_owned(),
            Self::Transport => "transport/*".to_owned(),
            Self::GuestProtocol => "guest/protocol".to_owned(),
            Self::GuestAgent => "guest/agent".to_owned(),
            Self::SimulatedGuest => "testbed/guest".to_owned(),
            Self::TestServers => "testbed/servers".to_owned(),
            Self::TestGuests => "testbed/real-guests".to_owned(),
            other => format!("{other:?}").to_lowercase(),
        }
    }
}

/// The right-hand side of one line of the table.
enum Permitted {
    /// These places, and the leaves.
    Only(Vec<Place>),
    /// Not even a leaf.
    Nothing,
    /// Any crate of the house, perhaps but the binary.
    House { but_the_binary: bool },
    /// Any crate of the house, and what starts servers.
    HouseAndTestServers,
    /// Harnesses of benches, and what starts servers.
    BenchAndTestServers,
}

impl Permitted {
    fn contain(&self, place: Place) -> bool {
        match self {
            Self::Only(places) => place == Place::Leaf || places.contains(&place),
            Self::Nothing => false,
            Self::House { but_the_binary } => {
                place.is_in_the_house() && !(*but_the_binary && place == Place::Binary)
            }
            Self::HouseAndTestServers => place.is_in_the_house() || place == Place::TestServers,
            Self::BenchAndTestServers => matches!(place, Place::Bench | Place::TestServers),
        }
    }
}

impl fmt::Display for Permitted {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Only(places) if places.is_empty() => {
                write!(formatter, "may import clock and provider/error alone")
            }
            Self::Only(places) => {
                let names: Vec<String> = places.iter().map(|place| place.name()).collect();
                write!(formatter, "may import {}, clock and provider/error", names.join(", "))
            }
            Self::Nothing => write!(formatter, "is a leaf: all may import it and it imports none of ours"),
            Self::House { but_the_binary: true } => {
                write!(
                    formatter,
                    "may import every crate of the house but flames, and nothing outside the house"
                )
            }
            Self::House { but_the_binary: false } => {
                write!(formatter, "may import every crate of the house, and nothing outside it")
            }
            Self::HouseAndTestServers => {
                write!(
                    formatter,
                    "may import every crate of the house, testbed/servers, and nothing else of ours"
                )
            }
            Self::BenchAndTestServers => {
                write!(
                    formatter,
                    "stands outside the house: it may import bench harnesses and testbed/servers alone"
                )
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn violations_of(from: &str, to: &str) -> Vec<Violation> {
        let import = Import { from: from.to_owned(), to: to.to_owned(), kind: ImportKind::Normal };
        forbidden_edges(&Graph { packages: vec![from.to_owned(), to.to_owned()], imports: vec![import] })
    }

    #[track_caller]
    fn assert_allowed(from: &str, to: &[&str]) {
        for to in to {
            assert_eq!(violations_of(from, to), [], "{from} -> {to} must be allowed");
        }
    }

    #[track_caller]
    fn assert_forbidden(from: &str, to: &[&str]) {
        for to in to {
            assert!(
                matches!(violations_of(from, to).as_slice(), [Violation::Forbidden { .. }]),
                "{from} -> {to} must be forbidden"
            );
        }
    }

    #[test]
    fn every_crate_may_import_the_leaves_and_the_leaves_import_nothing() {
        for from in ["flames-model", "flames-state", "flames-state-sqlite", "flames-controller", "flames"] {
            assert_allowed(from, &["flames-clock", "flames-error"]);
        }
        assert_forbidden("flames-clock", &["flames-error", "flames-model"]);
        assert_forbidden("flames-error", &["flames-clock", "flames-state"]);
    }

    #[test]
    fn an_adapter_imports_its_own_interface_and_nothing_else_of_ours() {
        assert_allowed("flames-blob-object-store", &["flames-blob"]);
        assert_forbidden("flames-blob-object-store", &["flames-state", "flames-blob-memory", "flames-model"]);
        assert_forbidden(
            "flames-queue-sql",
            &["flames-state-sqlite", "flames-blob", "flames-queue-conformance"],
        );
        assert_allowed(
            "flames-vmm-firecracker",
            &[
                "flames-vmm",
                "flames-vmm-local",
                "flames-host",
                "flames-firecracker-api",
                "flames-firecracker-jail",
            ],
        );
        assert_allowed("flames-vmm-qemu", &["flames-vmm", "flames-vmm-local", "flames-host"]);
        assert_allowed("flames-vmm-local", &["flames-vmm", "flames-host"]);
        assert_forbidden("flames-vmm-local", &["flames-vmm-qemu", "flames-firecracker-jail", "flames-model"]);
        assert_forbidden("flames-controller", &["flames-vmm-local"]);
        assert_forbidden("flames-firecracker-jail", &["flames-vmm-local"]);
        assert_allowed("flames-firecracker-network", &["flames-host"]);
        assert_forbidden("flames-queue-sql", &["flames-host"]);
        assert_allowed("flames-queue-sql", &["flames-queue", "flames-sqlite"]);
        assert_allowed("flames-state-sqlite", &["flames-state", "flames-sqlite"]);
        assert_forbidden("flames-vmm-qemu", &["flames-sqlite"]);
        assert_forbidden("flames-sqlite", &["flames-state"]);
        assert_forbidden("flames-host", &["flames-vmm"]);
        assert_forbidden("flames-vmm-qemu", &["flames-firecracker-api", "flames-guest-protocol"]);
    }

    #[test]
    fn an_interface_and_the_model_import_nothing_of_ours_but_leaves() {
        assert_forbidden("flames-queue", &["flames-state", "flames-model"]);
        assert_forbidden("flames-model", &["flames-wire", "flames-records", "flames-state"]);
    }

    #[test]
    fn the_logic_sees_interfaces_and_never_a_concrete_provider_or_http() {
        assert_allowed("flames-records", &["flames-model", "flames-state"]);
        assert_forbidden("flames-records", &["flames-state-sqlite", "flames-service"]);
        assert_allowed(
            "flames-service",
            &["flames-model", "flames-records", "flames-scheduler", "flames-blob"],
        );
        assert_forbidden(
            "flames-service",
            &["flames-wire", "flames-transport-http", "flames-state", "flames-queue"],
        );
        assert_allowed(
            "flames-reconcile",
            &["flames-service", "flames-queue", "flames-cache", "flames-ingress"],
        );
        assert_forbidden("flames-reconcile", &["flames-vmm", "flames-client", "flames-queue-memory"]);
        assert_allowed("flames-transport-link", &["flames-service", "flames-wire", "flames-model"]);
        assert_forbidden(
            "flames-transport-http",
            &["flames-records", "flames-client", "flames-transport-link"],
        );
    }

    #[test]
    fn the_host_side_reaches_the_api_through_the_client_alone() {
        assert_allowed(
            "flames-controller",
            &["flames-client", "flames-image", "flames-vmm", "flames-guest-protocol"],
        );
        assert_forbidden(
            "flames-controller",
            &["flames-service", "flames-records", "flames-wire", "flames-state"],
        );
        assert_allowed("flames-client", &["flames-wire"]);
        assert_forbidden("flames-client", &["flames-model", "flames-service"]);
        assert_forbidden("flames-guest-agent", &["flames-controller", "flames-model"]);
    }

    #[test]
    fn a_conformance_suite_and_the_decorators_import_interfaces_alone() {
        assert_allowed("flames-vmm-conformance", &["flames-vmm", "flames-conformance-runner"]);
        assert_forbidden("flames-conformance-runner", &["flames-vmm"]);
        assert_forbidden("flames-vmm-simulated", &["flames-conformance-runner", "flames-vmm-conformance"]);
        assert_forbidden("flames-vmm-conformance", &["flames-vmm-simulated", "flames-state"]);
        assert_allowed("flames-decorate", &["flames-state", "flames-blob", "flames-cache", "flames-queue"]);
        assert_allowed("flames-decorate", &["flames-ingress", "flames-vmm"]);
        assert_forbidden("flames-decorate", &["flames-state-memory", "flames-records"]);
    }

    #[test]
    fn the_testbed_imports_all_but_the_binary_and_nobody_but_the_binary_names_all() {
        assert_allowed("flames-testbed", &["flames-service", "flames-state-memory", "flames-transport-http"]);
        assert_forbidden("flames-testbed", &["flames", "xtask"]);
        assert_allowed("flames", &["flames-testbed", "flames-state-sqlite", "flames-vmm-qemu"]);
        assert_forbidden("flames-controller", &["flames", "flames-testbed", "flames-simulated-guest"]);
        assert_allowed("flames-simulated-guest", &["flames-controller", "flames-vmm-simulated"]);
        assert_forbidden(
            "flames-simulated-guest",
            &["flames-testbed", "flames-service", "flames-state-memory"],
        );
    }

    #[test]
    fn xtask_stands_outside_the_house() {
        assert_forbidden("xtask", &["flames", "flames-model", "flames-clock"]);
        assert_forbidden("flames", &["xtask", "flames-bench-api"]);
        assert_forbidden("flames-model", &["xtask"]);
        assert_allowed("xtask", &["flames-bench-api"]);
        assert_allowed("flames-bench-api", &["flames", "flames-service"]);
    }

    #[test]
    fn what_starts_servers_is_for_xtask_benches_and_dev_dependencies_alone() {
        assert_allowed("xtask", &["flames-test-servers"]);
        assert_allowed("flames-bench-harness", &["flames-test-servers"]);
        for from in ["flames", "flames-testbed", "flames-state-postgres", "flames-state-conformance"] {
            assert_forbidden(from, &["flames-test-servers"]);
        }
        assert_allowed("flames-test-servers", &["flames-conformance-runner"]);
        let others = ["flames-state", "flames-state-conformance", "flames-testbed", "xtask"];
        assert_forbidden("flames-test-servers", &others);
    }

    #[test]
    fn what_tests_do_with_real_guests_is_for_dev_dependencies_alone() {
        assert_allowed("flames-test-guests", &["flames-vmm", "flames-image"]);
        assert_forbidden("flames-test-guests", &["flames-vmm-qemu", "flames-controller", "flames-testbed"]);
        for from in ["flames", "flames-testbed", "flames-vmm-qemu", "flames-vmm-conformance", "xtask"] {
            assert_forbidden(from, &["flames-test-guests"]);
        }
    }

    #[test]
    fn a_build_dependency_counts_as_an_import() {
        let import = Import {
            from: "flames-wire".to_owned(),
            to: "flames-service".to_owned(),
            kind: ImportKind::Build,
        };
        let graph = Graph { packages: vec![], imports: vec![import] };
        let found = forbidden_edges(&graph);
        assert_eq!(found.len(), 1);
        assert!(found[0].to_string().contains("build dependency"), "{}", found[0]);
    }

    #[test]
    fn a_package_that_the_table_does_not_know_is_refused_even_without_imports() {
        for package in ["flames-sidecar", "helper", "flames-statement"] {
            let graph = Graph { packages: vec![package.to_owned()], imports: vec![] };
            assert_eq!(forbidden_edges(&graph), [Violation::Homeless { package: package.to_owned() }]);
        }
    }

    #[test]
    fn a_violation_names_the_edge_and_the_rule() {
        let text = violations_of("flames-records", "flames-service")[0].to_string();
        assert!(text.contains("flames-records -> flames-service"), "{text}");
        assert!(text.contains("may import model, provider/state, clock and provider/error"), "{text}");
    }
}
