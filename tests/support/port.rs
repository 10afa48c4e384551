//! Loopback addresses for servers that must be told where to listen.

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    os::{linux::net::SocketAddrExt as _, unix::net as unix},
    process::Child,
    sync::Mutex,
    time::{Duration, Instant},
};

/// Below those that Linux gives to whoever asks for any (`net.ipv4.ip_local_port_range`, from 32768 on): a port of that range that
/// was free a moment ago may be another test's listener, or the near end of a connection, before the server is there.
const PORTS: std::ops::Range<u16> = 20_000..32_000;

/// What keeps other processes of this network namespace from the ports that this one has reserved.
static RESERVED: Mutex<Vec<unix::UnixDatagram>> = Mutex::new(Vec::new());

/// A loopback address on which nobody listens, and which no other test gets while this process lives.
pub(crate) fn reserved_address() -> SocketAddr {
    PORTS
        .map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port)))
        .find(|&address| reserve(address) && TcpListener::bind(address).is_ok())
        .expect("a port is free")
}

/// Whether the address was nobody's so far. Abstract names need no files and go with the process.
fn reserve(address: SocketAddr) -> bool {
    let name = format!("stratabd test {address}");
    let name = unix::SocketAddr::from_abstract_name(name).unwrap();
    let Ok(socket) = unix::UnixDatagram::bind_addr(&name) else {
        return false;
    };
    RESERVED.lock().unwrap().push(socket);
    true
}

/// Waits until `server` listens at `address`.
pub(crate) fn wait_for_server(server: &mut Child, address: SocketAddr) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while TcpStream::connect(address).is_err() {
        let ended = server.try_wait().unwrap();
        assert!(ended.is_none(), "the server for {address} ended before it listened: {ended:?}");
        assert!(Instant::now() < deadline, "{address} never listened");
        #[expect(clippy::disallowed_methods, reason = "a test waits for a child process")]
        std::thread::sleep(Duration::from_millis(50));
    }
}
