//! Passes everything for `*.example` to one target: what benchmarks run against other proxies.
//!
//! `cargo run --release -p flames-ingress-proxy --example serve -- LISTEN TARGET [ROUTES]`, where ROUTES (default 1) is how many
//! routes the table has; `h0.example` leads to TARGET, and so do all others.

use std::net::SocketAddr;

use flames_ingress::{IngressProvider, Route, RouteKey, RouteOwner, Target};
use flames_ingress_proxy::{Hooks, Proxy, ProxyConfig};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let mut next = || arguments.next().ok_or("serve LISTEN TARGET [ROUTES]");
    let listen: SocketAddr = next()?.parse()?;
    let target: SocketAddr = next()?.parse()?;
    let routes: u32 = next().map_or(Ok(1), |count| count.parse())?;
    let proxy = Proxy::start(ProxyConfig::new(listen, "vms.example"), Hooks::default()).await?;
    for number in 0..routes {
        let key = RouteKey { vm: RouteOwner::new(format!("vm_{number}"))?, port: 80 };
        let route = Route { key, hosts: vec![format!("h{number}.example")] };
        proxy.register(route, Target::Address(target)).await?;
    }
    std::future::pending::<()>().await;
    Ok(())
}
