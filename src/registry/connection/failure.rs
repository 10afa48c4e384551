//! Reads out of a failed exchange what the operator needs to know: no way there, TLS, or broken in the middle.

use std::{error::Error, fmt, io, time::Duration};

use hyper_util::client::legacy;
use rustls::CertificateError;

use super::{egress::ProxyError, tunnel::TunnelError};
use crate::registry::Reason;

/// The whole of name resolution, TCP, proxy and TLS took too long.
#[derive(Debug)]
pub(super) struct ConnectTimeout(pub(super) Duration);

impl fmt::Display for ConnectTimeout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no connection within {:?}", self.0)
    }
}

impl Error for ConnectTimeout {}

pub(super) fn reason(error: legacy::Error, host: String) -> Reason {
    if let Some(ConnectTimeout(limit)) = find::<ConnectTimeout>(&error) {
        return Reason::Timeout { what: "connection", limit: *limit };
    }
    if let Some(ProxyError { proxy, .. }) = find(&error)
        && let Some(TunnelError::Refused(status)) = find(&error)
    {
        return Reason::Proxy { proxy: proxy.clone(), status: status.as_u16() };
    }
    let is_connect = error.is_connect();
    match find::<rustls::Error>(&error) {
        Some(rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer)) => {
            Reason::UnknownAuthority { host, source: error.into() }
        }
        Some(rustls::Error::InvalidCertificate(_)) => Reason::Certificate { host, source: error.into() },
        Some(rustls::Error::InvalidMessage(_)) => Reason::NotTls { host, source: error.into() },
        Some(_) => Reason::Tls { host, source: error.into() },
        None if is_connect => Reason::Connect { host, source: error.into() },
        None => Reason::Exchange { source: error.into() },
    }
}

/// Looks for a cause of type `T`. An `io::Error` hides what it wraps from `source`, so it is opened by hand.
fn find<'a, T: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a T> {
    /// Deeper chains than this are not built by any library below.
    const MAX_DEPTH: usize = 16;
    let mut current = Some(error);
    for _ in 0..MAX_DEPTH {
        let error = current?;
        if let Some(found) = error.downcast_ref::<T>() {
            return Some(found);
        }
        let wrapped = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        current = match wrapped {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    None
}
