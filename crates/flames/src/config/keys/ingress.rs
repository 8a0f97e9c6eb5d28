//! The settings of the ingress.

use super::Kind::{Choice, Count, Duration, List, Switch, Text, Url};
use super::Section::Ingress;
use super::{Key, key, set};

const INGRESS_BACKENDS: &[&str] = &["noop", "proxy", "caddy"];
const PROXY: &[&str] = &["proxy"];
const CADDY: &[&str] = &["caddy"];
const SERVED: &[&str] = &["proxy", "caddy"];

pub(super) const KEYS: &[Key] = &[
    set(
        Ingress,
        "backend",
        Choice(INGRESS_BACKENDS),
        &[],
        "proxy",
        "How traffic reaches guests: `proxy` is the reverse proxy in this process, `caddy` a Caddy that runs beside, `noop` forwards nothing.",
    ),
    key(
        Ingress,
        "listen",
        List,
        SERVED,
        None,
        "127.0.0.1:7080",
        "Where it listens, plainly [default: 127.0.0.1:7080 for the proxy, any free port where the API's is any free one; :8080 for Caddy].",
    ),
    key(
        Ingress,
        "listen_tls",
        List,
        PROXY,
        None,
        "127.0.0.1:7443",
        "Where it listens with TLS; needs `certificates`.",
    ),
    key(
        Ingress,
        "certificates",
        List,
        PROXY,
        None,
        "/etc/flames/tls.crt:/etc/flames/tls.key",
        "Certificates, each CERTIFICATE:KEY or CERTIFICATE:KEY:HOST:HOST…, files in PEM. Read again when they change.",
    ),
    set(
        Ingress,
        "domain",
        Text,
        SERVED,
        "localhost",
        "The domain under which VMs are named: a port of a VM is `{port}-{vm}.{domain}`.",
    ),
    key(
        Ingress,
        "public_port",
        Count,
        SERVED,
        None,
        "443",
        "The port that URLs name [default: where it listens].",
    ),
    key(
        Ingress,
        "public_tls",
        Switch,
        SERVED,
        None,
        "true",
        "Whether URLs begin with `https` [default: as it listens].",
    ),
    key(
        Ingress,
        "trusted_proxies",
        List,
        PROXY,
        None,
        "10.0.0.0/8",
        "Peers whose `Forwarded` and `X-Forwarded-*` headers are believed.",
    ),
    set(
        Ingress,
        "admin",
        Url,
        CADDY,
        "http://127.0.0.1:2019",
        "Caddy's admin API: `http://HOST:PORT` or `unix:///PATH`.",
    ),
    set(Ingress, "cluster", Text, CADDY, "default", "Whose routes these are, so that a Caddy can be shared."),
    set(
        Ingress,
        "server",
        Text,
        CADDY,
        "flames",
        "The name of the HTTP server in Caddy's configuration; it is made when it is not there.",
    ),
    set(
        Ingress,
        "automatic_https",
        Switch,
        CADDY,
        "false",
        "Whether a server that is made gets certificates by itself, and redirects to HTTPS.",
    ),
    set(Ingress, "deadline", Duration, CADDY, "10s", "How long one request to the admin API may take."),
];
