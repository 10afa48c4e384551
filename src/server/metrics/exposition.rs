//! The two formats that Prometheus reads, and which one a client wants.

/// A format of metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exposition {
    /// Prometheus' own text format 0.0.4, which everything reads.
    Text,
    /// OpenMetrics 1.0.0, for whoever asks for it.
    OpenMetrics,
}

impl Exposition {
    /// The format for a client that says `accept` in its header of that name: OpenMetrics where it is named there, and not liked
    /// less than text.
    #[must_use]
    pub fn accepted(accept: &str) -> Self {
        let (mut open, mut text) = (0.0, 0.0);
        for range in accept.split(',') {
            let mut parts = range.split(';').map(str::trim);
            let kind = parts.next().unwrap_or_default();
            let weight = parts.find_map(|part| part.strip_prefix("q=").or_else(|| part.strip_prefix("Q=")));
            let weight = weight.map_or(1.0, |weight| weight.parse().unwrap_or(0.0));
            if kind.eq_ignore_ascii_case("application/openmetrics-text") {
                open = f32::max(open, weight);
            } else if kind.eq_ignore_ascii_case("text/plain") {
                text = f32::max(text, weight);
            }
        }
        if open > 0.0 && open >= text { Self::OpenMetrics } else { Self::Text }
    }

    /// What the answer is called.
    #[must_use]
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn openmetrics_is_for_who_asks_for_it() {
        let prometheus = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,\
            text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        for (accept, wanted) in [
            ("", Exposition::Text),
            ("*/*", Exposition::Text),
            ("text/html, */*;q=0.8", Exposition::Text),
            ("text/plain;version=0.0.4", Exposition::Text),
            ("application/openmetrics-text;q=0.2, text/plain; q=0.9", Exposition::Text),
            ("application/openmetrics-text;q=0", Exposition::Text),
            ("application/openmetrics-text;q=nonsense", Exposition::Text),
            ("application/openmetrics-text-like, application/json", Exposition::Text),
            ("Application/OpenMetrics-Text; version=1.0.0; Q=0.5", Exposition::OpenMetrics),
            (prometheus, Exposition::OpenMetrics),
        ] {
            assert_eq!(Exposition::accepted(accept), wanted, "{accept}");
        }
    }
}
