//! Our routes as Caddy's configuration has them.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use flames_error::{Error, ErrorKind, Result};
use flames_ingress::{Registration, Route, RouteKey, RouteOwner, Target};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// How things are named.
#[derive(Debug, Clone)]
pub(crate) struct Naming {
    pub(crate) cluster: String,
    pub(crate) domain: String,
    /// `https` or `http`.
    pub(crate) scheme: &'static str,
    /// The port that URLs name, when it is not the scheme's own.
    pub(crate) port: Option<u16>,
}

/// The table, by key.
pub(crate) type Table = BTreeMap<RouteKey, Registration>;

#[derive(Serialize, Deserialize)]
struct PortRoute {
    #[serde(rename = "@id")]
    id: String,
    r#match: Vec<HostMatch>,
    handle: Vec<ReverseProxy>,
    terminal: bool,
}

#[derive(Serialize, Deserialize)]
struct HostMatch {
    host: Vec<String>,
}

#[derive(Serialize, Deserialize)]
struct ReverseProxy {
    handler: String,
    upstreams: Vec<Dialled>,
}

#[derive(Serialize, Deserialize)]
struct Dialled {
    dial: String,
}

impl Naming {
    /// The id of the subroute that holds ours.
    pub(crate) fn holder_id(&self) -> String {
        format!("flames:{}", self.cluster)
    }

    pub(crate) fn unknown_host_id(&self) -> String {
        format!("flames:{}:unknown-host", self.cluster)
    }

    /// The names that a port has by convention: with the id's underscore, and with a dash in its place, since an underscore is not
    /// allowed in a host name (RFC 1123, section 2.1). The last is the one that URLs show.
    fn conventional(&self, key: &RouteKey) -> Vec<String> {
        let vm = key.vm.as_str();
        let mut names = vec![format!("{}-{vm}.{}", key.port, self.domain)];
        let dashed = vm.replacen('_', "-", 1);
        if dashed != vm && !dashed.contains('_') {
            names.push(format!("{}-{dashed}.{}", key.port, self.domain));
        }
        names
    }

    /// Whether a host name has the form of a VM's own.
    fn is_conventional(&self, host: &str) -> bool {
        let label = host.strip_suffix(self.domain.as_str()).and_then(|rest| rest.strip_suffix('.'));
        label.is_some_and(|label| {
            let digits = label.bytes().take_while(u8::is_ascii_digit).count();
            !label.contains('.') && digits > 0 && label.as_bytes().get(digits) == Some(&b'-')
        })
    }

    pub(crate) fn url(&self, route: &Route) -> Option<String> {
        let host = route.hosts.first().cloned().or_else(|| self.conventional(&route.key).pop())?;
        let port = self.port.map(|port| format!(":{port}")).unwrap_or_default();
        Some(format!("{}://{host}{port}/", self.scheme))
    }

    /// Refuses a route that is none, or takes another VM's own name.
    pub(crate) fn check(&self, route: &Route) -> Result<()> {
        route.validate()?;
        if route.hosts.iter().any(|host| self.is_conventional(host) || *host == self.domain) {
            let sentence = "Names of the form `{port}-{vm}` under the ingress' own domain belong to the VMs that they name.";
            return Err(Error::invalid("ingress.register", "hosts", sentence));
        }
        Ok(())
    }

    fn port_route(&self, registration: &Registration) -> Option<PortRoute> {
        let Target::Address(address) = registration.target else { return None };
        let key = &registration.route.key;
        let mut host = registration.route.hosts.clone();
        host.extend(self.conventional(key));
        Some(PortRoute {
            id: format!("flames:{}:{}:{}", self.cluster, key.port, key.vm),
            r#match: vec![HostMatch { host }],
            handle: vec![ReverseProxy {
                handler: "reverse_proxy".to_owned(),
                upstreams: vec![Dialled { dial: address.to_string() }],
            }],
            terminal: true,
        })
    }

    /// The subroute that holds the table.
    pub(crate) fn holder(&self, table: &Table) -> Value {
        let routes: Vec<PortRoute> = table.values().filter_map(|one| self.port_route(one)).collect();
        json!({ "@id": self.holder_id(), "handle": [{ "handler": "subroute", "routes": routes }] })
    }

    /// The route that answers when no other does.
    pub(crate) fn unknown_host(&self) -> Value {
        json!({
            "@id": self.unknown_host_id(),
            "handle": [{
                "handler": "static_response",
                "status_code": 404,
                "headers": {
                    "Content-Type": ["text/plain; charset=utf-8"],
                    "Cache-Control": ["no-store"],
                    "Flames-Problem": ["unknown_host"],
                },
                "body": "404 Not Found\nNothing is served under this host name.\n",
            }],
            "terminal": true,
        })
    }

    /// The table that a subroute holds. What cannot be read as a route of ours is left out.
    fn table(&self, holder: &Value) -> Table {
        let routes = holder.pointer("/handle/0/routes").and_then(Value::as_array);
        let read = |route: &Value| {
            let registration = self.registration(PortRoute::deserialize(route).ok()?);
            if registration.is_none() {
                tracing::warn!(%route, "a route that cannot be read stands among ours in Caddy");
            }
            registration
        };
        let registrations = routes.into_iter().flatten().filter_map(read);
        registrations.map(|registration| (registration.route.key.clone(), registration)).collect()
    }

    fn registration(&self, stored: PortRoute) -> Option<Registration> {
        let name = stored.id.strip_prefix(&self.holder_id())?.strip_prefix(':')?;
        let (port, vm) = name.split_once(':')?;
        let key = RouteKey { vm: RouteOwner::new(vm).ok()?, port: port.parse().ok()? };
        let conventional = self.conventional(&key);
        let mut hosts: Vec<String> = stored.r#match.into_iter().next()?.host;
        hosts.retain(|host| !conventional.contains(host));
        let route = Route { key, hosts };
        let dialled = stored.handle.first().filter(|handler| handler.handler == "reverse_proxy")?;
        let address: SocketAddr = dialled.upstreams.first()?.dial.parse().ok()?;
        let url = self.url(&route);
        Some(Registration { route, target: Target::Address(address), url })
    }
}

/// What stands in the server.
#[derive(Debug)]
pub(crate) enum Found {
    /// There is no such server.
    NoServer,
    /// The server has no list of routes.
    NoRoutes,
    /// The server's routes have none of ours.
    NoHolder {
        /// Where ours belong: before what answers for unknown hosts, when another cluster has that already.
        place: usize,
        /// Whether that is the end.
        is_end: bool,
    },
    /// Ours.
    Holder {
        table: Table,
        /// Whether whatever no route took gets 404: the route for that is there, and the last (but for other clusters').
        is_closed: bool,
        /// Whether that route is there at all.
        has_unknown_host: bool,
    },
}

impl Found {
    /// Reads a server's routes, as the admin API gives them.
    pub(crate) fn read(naming: &Naming, server: &Value) -> Result<Self> {
        if server.is_null() {
            return Ok(Self::NoServer);
        }
        let Some(routes) = server.get("routes").filter(|routes| !routes.is_null()) else {
            return Ok(Self::NoRoutes);
        };
        let routes = routes.as_array().ok_or_else(|| {
            Error::new(ErrorKind::Corrupt, "ingress.read", "Caddy's list of routes is no list")
        })?;
        let has_id = |route: &Value, id: &str| route.get("@id").and_then(Value::as_str) == Some(id);
        let (holder, unknown) = (naming.holder_id(), naming.unknown_host_id());
        // Every cluster that shares the server has its own; which of them answers makes no difference.
        let is_last_word = |route: &Value| {
            let id = route.get("@id").and_then(Value::as_str);
            id.is_some_and(|id| id.starts_with("flames:") && id.ends_with(":unknown-host"))
        };
        let place = routes.iter().rposition(|route| !is_last_word(route)).map_or(0, |last| last + 1);
        let Some(held) = routes.iter().find(|route| has_id(route, &holder)) else {
            return Ok(Self::NoHolder { place, is_end: place == routes.len() });
        };
        Ok(Self::Holder {
            table: naming.table(held),
            is_closed: routes[place..].iter().any(|route| has_id(route, &unknown)),
            has_unknown_host: routes.iter().any(|route| has_id(route, &unknown)),
        })
    }

    pub(crate) fn table(&self) -> Table {
        match self {
            Self::Holder { table, .. } => table.clone(),
            Self::NoServer | Self::NoRoutes | Self::NoHolder { .. } => Table::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn naming() -> Naming {
        Naming {
            cluster: "one".to_owned(),
            domain: "vms.example".to_owned(),
            scheme: "http",
            port: Some(8080),
        }
    }

    fn registration(vm: &str, port: u16, hosts: &[&str]) -> Registration {
        let hosts = hosts.iter().map(|host| (*host).to_owned()).collect();
        let route = Route { key: RouteKey { vm: RouteOwner::new(vm).unwrap(), port }, hosts };
        let url = naming().url(&route);
        Registration { route, target: Target::Address(([127, 0, 0, 1], 9).into()), url }
    }

    #[test]
    fn a_table_is_read_back_as_it_was_written() {
        let naming = naming();
        let all = [registration("vm_1", 80, &["b.example", "a.example"]), registration("a_b_c", 1, &[])];
        let table: Table = all.into_iter().map(|one| (one.route.key.clone(), one)).collect();
        assert_eq!(naming.table(&naming.holder(&table)), table);
        assert_eq!(
            naming.url(&registration("vm_1", 80, &[]).route).unwrap(),
            "http://80-vm-1.vms.example:8080/"
        );
    }

    #[test]
    fn what_is_no_route_of_ours_is_left_out() {
        let naming = naming();
        let mut holder = naming.holder(&Table::new());
        let routes = holder.pointer_mut("/handle/0/routes").unwrap();
        let right = naming.port_route(&registration("vm_1", 80, &[])).unwrap();
        let mut wrong = serde_json::to_value(&right).unwrap();
        wrong["@id"] = json!("flames:other:80:vm_1");
        let mut edited = serde_json::to_value(&right).unwrap();
        edited["@id"] = json!("flames:one:81:vm_1");
        edited["handle"] = json!([{ "handler": "static_response", "body": "x" }]);
        *routes = json!([wrong, right, edited, { "x": 1 }, null]);
        assert_eq!(naming.table(&holder).len(), 1);
    }
}
