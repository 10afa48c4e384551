//! Reads bodies: exactly as many bytes as promised, never waiting for a silent peer, never more than a limit.

use std::{error::Error as _, io, time::Duration};

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;
use tokio::time::timeout;

use super::{
    Reason, RegistryError,
    adaptive_limit::Outcome,
    call::Call,
    exchange::{Answer, Exchange},
    range_answer::BodyPart,
};

/// Reads the bytes of `part`. A body that must end there and does not is an error.
pub(super) async fn read_part(
    mut answer: Answer,
    part: BodyPart,
    call: Call<'_>,
    exchange: &Exchange,
) -> Result<Bytes, RegistryError> {
    let mut received: u64 = 0;
    let outcome = collect(&mut answer, part, call, exchange.limits.stall_timeout(), &mut received).await;
    match &outcome {
        Ok(_) => answer.place.learn(Outcome::Served),
        Err(Reason::Timeout { .. }) => answer.place.learn(Outcome::TimedOut),
        Err(_) => {}
    }
    let wasted = if outcome.is_ok() { part.skip } else { received };
    exchange.metrics.wasted_bytes.inc_by(wasted);
    outcome.map_err(|reason| answer.error(reason))
}

async fn collect(
    answer: &mut Answer,
    part: BodyPart,
    call: Call<'_>,
    stall: Duration,
    received: &mut u64,
) -> Result<Bytes, Reason> {
    let length = usize::try_from(part.len).map_err(|_| Reason::LongBody { expected: part.len })?;
    let mut skip = part.skip;
    let mut bytes = BytesMut::with_capacity(length);
    while let Some(mut data) = next(answer, stall, part, *received).await? {
        *received = received.saturating_add(data.len() as u64);
        call.clock.received(data.len() as u64);
        answer.place.heard();
        // A `usize` that does not hold `skip` is longer than any data.
        let skipped = usize::try_from(skip).unwrap_or(usize::MAX).min(data.len());
        skip -= skipped as u64;
        let mut data = data.split_off(skipped);
        let missing = length - bytes.len();
        if data.len() > missing {
            if part.is_whole_body {
                return Err(Reason::LongBody { expected: part.len });
            }
            data.truncate(missing);
        }
        bytes.extend_from_slice(&data);
        if bytes.len() == length && !part.is_whole_body {
            return Ok(bytes.freeze());
        }
    }
    if bytes.len() == length {
        Ok(bytes.freeze())
    } else {
        Err(Reason::ShortBody { expected: part.len, got: bytes.len() as u64 })
    }
}

/// Reads a body of at most `limit` bytes; `None` if it is longer.
pub(super) async fn read_limited(
    mut answer: Answer,
    limit: usize,
    stall: Duration,
) -> Result<Option<Bytes>, RegistryError> {
    let whole = BodyPart { skip: 0, len: limit as u64, is_whole_body: true };
    let mut bytes = BytesMut::new();
    loop {
        match next(&mut answer, stall, whole, bytes.len() as u64).await {
            Ok(Some(data)) if data.len() > limit - bytes.len() => return Ok(None),
            Ok(Some(data)) => bytes.extend_from_slice(&data),
            Ok(None) => {
                answer.place.learn(Outcome::Served);
                return Ok(Some(bytes.freeze()));
            }
            Err(reason) => return Err(answer.error(reason)),
        }
    }
}

/// The next piece of the body; `None` at its end.
async fn next(
    answer: &mut Answer,
    stall: Duration,
    part: BodyPart,
    received: u64,
) -> Result<Option<Bytes>, Reason> {
    loop {
        let Ok(frame) = timeout(stall, answer.response.frame()).await else {
            return Err(Reason::Timeout { what: "more data", limit: stall });
        };
        match frame {
            None => return Ok(None),
            // Trailers carry nothing of the blob.
            Some(Ok(frame)) => {
                if let Ok(data) = frame.into_data() {
                    return Ok(Some(data));
                }
            }
            Some(Err(error)) if is_cut(&error) => {
                return Err(Reason::ShortBody {
                    expected: part.skip.saturating_add(part.len),
                    got: received,
                });
            }
            Some(Err(error)) => return Err(Reason::Exchange { source: error.into() }),
        }
    }
}

/// Whether the peer closed before the length that it had announced.
fn is_cut(error: &hyper::Error) -> bool {
    let cause = error.source().and_then(|cause| cause.downcast_ref::<io::Error>());
    error.is_incomplete_message() || cause.is_some_and(|cause| cause.kind() == io::ErrorKind::UnexpectedEof)
}
