//! Which of this machine's addresses other ranks reach it by.

use std::env;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs, UdpSocket};

use circuitlab_core::{Error, Result};

use crate::ffi;
use crate::store::first_line;

const INTERFACE: &str = "GLOO_SOCKET_IFNAME";

/// The address of the interface that `GLOO_SOCKET_IFNAME` names, if it does.
pub(crate) fn of_interface() -> Result<Option<IpAddr>> {
    let Some(name) = env::var(INTERFACE).ok().filter(|name| !name.is_empty()) else { return Ok(None) };
    let wrong = |text: &str| Error::Invalid(format!("the environment's {INTERFACE} is `{}`: {}", name.escape_debug(), first_line(text)));
    // Several may be listed for other programs; connections go through one of ours.
    let address = ffi::interface_address(name.split(',').next().unwrap_or_default().trim()).map_err(|text| wrong(&text))?;
    address.parse().map(Some).map_err(|_| wrong(&format!("its address `{address}` is none")))
}

/// The address of this machine that it reaches a host by: a loopback one where the host is this machine.
pub(crate) fn towards(host: &str, port: u16) -> Result<IpAddr> {
    let failed = |error: std::io::Error| {
        Error::Invalid(format!("cannot find the way to `{host}`: {error}; expected a host that this machine can reach"))
    };
    let mut last = std::io::Error::new(std::io::ErrorKind::NotFound, "the name has no address");
    for address in (host, port).to_socket_addrs().map_err(failed)? {
        match own_address(address) {
            Ok(own) => return Ok(own),
            Err(error) => last = error,
        }
    }
    Err(failed(last))
}

/// Nothing is sent: connecting a datagram socket only looks up the route.
fn own_address(other: SocketAddr) -> std::io::Result<IpAddr> {
    let any: IpAddr = if other.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(other)?;
    Ok(socket.local_addr()?.ip())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_reaches_itself_by_loopback() {
        assert!(towards("127.0.0.1", 29500).expect("always there").is_loopback());
        assert!(towards("localhost", 29500).expect("always there").is_loopback());
    }

    #[test]
    fn a_host_without_an_address_is_named() {
        let error = towards("no-such-host.invalid", 1).expect_err("refused").to_string();
        assert!(error.starts_with("cannot find the way to `no-such-host.invalid`: "), "{error}");
    }
}
