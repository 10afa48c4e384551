//! From a request to an answer.

use std::sync::Arc;

use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header,
};
use serde::{Serialize, de::DeserializeOwned};

use super::{
    listen::ApiLimits,
    types::{
        AddDevice, DeviceList, ErrorAnswer, ErrorBody, ForkDevice, RecoverDevice, ResizeDevice, SetDevice,
        SnapshotDevice, UpgradeDaemon,
    },
    upstream,
};
use crate::server::{
    daemon::{Daemon, SnapshotTarget},
    failure::{Failure, FailureClass},
    metrics::{Exposition, MetricsDetail},
};

/// What a socket shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Surface {
    /// Everything.
    Control,
    /// Metrics alone: TCP knows no permission bits.
    Metrics,
}

pub(super) type Answer = Response<Full<Bytes>>;

/// The answer to `request`; a failure is an answer too.
pub(super) async fn answer(
    daemon: &Arc<Daemon>,
    request: Request<Incoming>,
    limits: &ApiLimits,
    surface: Surface,
) -> Answer {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let answered = match surface {
        Surface::Metrics if method == Method::GET && path == "/metrics" => metrics(daemon, &request).await,
        Surface::Metrics if method == Method::GET && path == "/healthz" => health(daemon).await,
        Surface::Metrics if method == Method::GET && path == "/readyz" => readiness(daemon).await,
        Surface::Metrics => Err(unknown(&path)),
        Surface::Control => route(daemon, request, limits).await,
    };
    answered.unwrap_or_else(|failure| {
        let error = ErrorBody::of(&failure);
        tracing::info!(%method, path, error = error.message, "a request has failed");
        let body = ErrorAnswer { error };
        let status =
            StatusCode::from_u16(failure.class().http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        json(status, &body)
    })
}

async fn route(
    daemon: &Arc<Daemon>,
    request: Request<Incoming>,
    limits: &ApiLimits,
) -> Result<Answer, Failure> {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let query = request.uri().query().unwrap_or_default().to_owned();
    let names: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    match (method.as_str(), names.as_slice()) {
        ("GET", ["metrics"]) => metrics(daemon, &request).await,
        ("GET", ["healthz"]) => health(daemon).await,
        ("GET", ["readyz"]) => readiness(daemon).await,
        ("GET", ["v1", "features"]) => Ok(json(StatusCode::OK, &daemon.features().await?)),
        ("GET", ["v1", "daemon"]) => Ok(json(StatusCode::OK, &daemon.describe())),
        ("POST", ["v1", "upgrade"]) => {
            let wanted: UpgradeDaemon = body(request, limits).await?;
            Ok(json(StatusCode::ACCEPTED, &daemon.upgrade(wanted).await?))
        }
        ("GET", ["v1", "devices"]) => Ok(json(StatusCode::OK, &DeviceList { devices: daemon.list().await? })),
        ("POST", ["v1", "devices"]) => {
            let wanted: AddDevice = body(request, limits).await?;
            Ok(json(StatusCode::CREATED, &daemon.add(wanted).await?))
        }
        ("POST", ["v1", "devices", id, "snapshot"]) => {
            let (id, wanted): (_, SnapshotDevice) = (number(id)?, body(request, limits).await?);
            let taken = daemon.snapshot(id, SnapshotTarget::Folder(wanted.to)).await?;
            Ok(json(StatusCode::CREATED, &taken))
        }
        ("POST", ["v1", "devices", id, "fork"]) => {
            let (id, wanted): (_, ForkDevice) = (number(id)?, body(request, limits).await?);
            Ok(json(StatusCode::CREATED, &daemon.fork(id, wanted).await?))
        }
        ("POST", ["v1", "devices", id, "resize"]) => {
            let (id, wanted): (_, ResizeDevice) = (number(id)?, body(request, limits).await?);
            Ok(json(StatusCode::OK, &daemon.resize(id, wanted.size_bytes).await?))
        }
        ("POST", ["v1", "devices", id, "recover"]) => {
            let (id, wanted): (_, RecoverDevice) = (number(id)?, body(request, limits).await?);
            Ok(json(StatusCode::OK, &daemon.recover(id, wanted).await?))
        }
        ("POST", ["v1", "devices", id, "set"]) => {
            let (id, wanted): (_, SetDevice) = (number(id)?, body(request, limits).await?);
            Ok(json(StatusCode::OK, &daemon.set(id, wanted).await?))
        }
        (_, ["snapshot"]) => Ok(upstream::snapshot(daemon, &query).await),
        ("GET", ["v1", "devices", id]) => Ok(json(StatusCode::OK, &daemon.info(number(id)?).await?)),
        ("DELETE", ["v1", "devices", id]) => {
            let id = number(id)?;
            let says = |wanted| says(&query, wanted);
            if !says("force=true") {
                daemon.refuse_in_use(id).await?;
            }
            Ok(json(StatusCode::OK, &daemon.remove(id, !says("wait=false")).await?))
        }
        (_, names) => match methods(names) {
            Some(allowed) => Ok(no_method(&method, &path, allowed)),
            None => Err(unknown(&path)),
        },
    }
}

/// The methods of what `names` is the path of.
fn methods(names: &[&str]) -> Option<&'static str> {
    Some(match names {
        ["v1", "devices"] => "GET, POST",
        ["v1", "devices", _] => "GET, DELETE",
        ["v1", "devices", _, "snapshot" | "fork" | "resize" | "set" | "recover"] => "POST",
        ["v1", "upgrade"] => "POST",
        ["metrics" | "healthz" | "readyz"] | ["v1", "features" | "daemon"] => "GET",
        _ => return None,
    })
}

/// The answer to a request for what is there by a method that it does not have.
fn no_method(method: &Method, path: &str, allowed: &'static str) -> Answer {
    let message = format!("{path} has no method {method}");
    let error = ErrorBody::of(&Failure::new(FailureClass::Usage, message));
    let mut answer = json(StatusCode::METHOD_NOT_ALLOWED, &ErrorAnswer { error });
    answer.headers_mut().insert(header::ALLOW, header::HeaderValue::from_static(allowed));
    answer
}

/// Whether the query has this pair.
fn says(query: &str, wanted: &str) -> bool {
    query.split('&').any(|pair| pair == wanted)
}

/// For whoever restarts what does not serve. A device that waits for its registry is no reason.
async fn health(daemon: &Arc<Daemon>) -> Result<Answer, Failure> {
    Ok(json(StatusCode::OK, &daemon.health().await?))
}

/// For whoever waits until all devices of the former daemon are there again.
async fn readiness(daemon: &Arc<Daemon>) -> Result<Answer, Failure> {
    let health = daemon.health().await?;
    let status = if health.status == "ok" { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    Ok(json(status, &health))
}

async fn metrics(daemon: &Arc<Daemon>, request: &Request<Incoming>) -> Result<Answer, Failure> {
    let detail = match says(request.uri().query().unwrap_or_default(), "histograms=devices") {
        true => MetricsDetail::Devices,
        false => MetricsDetail::Totals,
    };
    let accept = request.headers().get(header::ACCEPT).and_then(|value| value.to_str().ok());
    let exposition = Exposition::accepted(accept.unwrap_or_default());
    let text = daemon.metrics(detail, exposition).await?;
    let mut answer = Response::new(Full::new(Bytes::from(text)));
    let kind = header::HeaderValue::from_static(exposition.content_type());
    answer.headers_mut().insert(header::CONTENT_TYPE, kind);
    Ok(answer)
}

async fn body<T: DeserializeOwned>(request: Request<Incoming>, limits: &ApiLimits) -> Result<T, Failure> {
    let read = Limited::new(request.into_body(), limits.body_bytes).collect();
    let bytes = match tokio::time::timeout(limits.receive_timeout, read).await {
        Ok(Ok(collected)) => collected.to_bytes(),
        Ok(Err(source)) => {
            return Err(Failure::with_source(FailureClass::Usage, "cannot read the request's body", source));
        }
        Err(_) => {
            return Err(Failure::new(FailureClass::TimedOut, "the request's body did not come in time"));
        }
    };
    serde_json::from_slice(&bytes).map_err(|source| {
        Failure::with_source(FailureClass::Usage, "the request's body is not as expected", source)
    })
}

fn number(text: &str) -> Result<u32, Failure> {
    text.parse()
        .map_err(|_| Failure::new(FailureClass::NotFound, format!("{text:?} is not the number of a device")))
}

fn unknown(path: &str) -> Failure {
    Failure::new(FailureClass::NotFound, format!("there is no {path} here"))
}

pub(super) fn json<T: Serialize>(status: StatusCode, value: &T) -> Answer {
    let bytes = serde_json::to_vec(value).expect("the API's types have texts for keys");
    let mut answer = Response::new(Full::new(Bytes::from(bytes)));
    *answer.status_mut() = status;
    answer.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
    answer
}
