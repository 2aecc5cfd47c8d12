//! How long the official SDKs wait before they try again, with their default settings.
//!
//! All of them double a range with every attempt and pick a random point in it ("full jitter"), so that clients that were
//! cut together do not come back together. They differ in where the range begins:
//!
//! | SDK | Least | Most | Attempt `n` after a cut waits |
//! |---|---|---|---|
//! | js, java, swift, dart | 500 ms | 20 s | `min(most, least + random(0 .. min(most, least * 2^n)))`, `n` from 0 |
//! | python | 100 ms | 20 s | the same |
//! | go | 200 ms | 20 s | `least + random * (least * 2^n - least)`, within least and most, `n` from 1 |
//!
//! The count starts again with a successful connect. (Read from centrifuge-js 5.7, centrifuge-python, centrifuge-go,
//! centrifuge-java, centrifuge-swift and centrifuge-dart as of August 2026; protocol section 5.4.)

use std::time::Duration;

use clap::ValueEnum;
use serde::Serialize;

/// The exponent above which the SDKs stop doubling.
const DOUBLINGS_MAX: u32 = 31;
/// Longest wait of every SDK.
const DELAY_MAX: Duration = Duration::from_secs(20);

/// How long an SDK waits for the transport to open, and again for the answer to a command.
pub const COMMAND_TIMEOUT: Duration = Duration::from_secs(5);

/// An SDK whose back-off is followed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, ValueEnum, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Sdk {
    /// centrifuge-js
    #[default]
    Js,
    /// centrifuge-python
    Python,
    /// centrifuge-go
    Go,
    /// centrifuge-swift
    Swift,
    /// centrifuge-java, also on Android
    Java,
    /// centrifuge-dart, also in Flutter
    Dart,
}

impl Sdk {
    /// All of them.
    pub const ALL: [Sdk; 6] = [Self::Js, Self::Python, Self::Go, Self::Swift, Self::Java, Self::Dart];

    /// The wait before an attempt, counted from 0 since the last success. `random` is from 0 to below 1.
    pub fn delay(self, attempt: u32, random: f64) -> Duration {
        let doublings = attempt.min(DOUBLINGS_MAX);
        let least = match self {
            Self::Js | Self::Swift | Self::Java | Self::Dart => Duration::from_millis(500),
            Self::Python => Duration::from_millis(100),
            Self::Go => Duration::from_millis(200),
        };
        let (least_s, most_s) = (least.as_secs_f64(), DELAY_MAX.as_secs_f64());
        let delay = match self {
            Self::Go => {
                // It counts before it asks for the delay, so its first attempt is number 1.
                let range = least_s * 2f64.powi(doublings as i32 + 1);
                least_s + random * (range - least_s)
            }
            Self::Js | Self::Python | Self::Swift | Self::Java | Self::Dart => {
                least_s + random * most_s.min(least_s * 2f64.powi(doublings as i32))
            }
        };
        Duration::from_secs_f64(delay.min(most_s))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range_ms(sdk: Sdk, attempt: u32) -> (u128, u128) {
        (sdk.delay(attempt, 0.0).as_millis(), sdk.delay(attempt, 1.0).as_millis())
    }

    #[test]
    fn the_range_doubles_from_the_defaults_of_each_sdk() {
        for sdk in [Sdk::Js, Sdk::Swift, Sdk::Java, Sdk::Dart] {
            assert_eq!([0, 1, 2].map(|attempt| range_ms(sdk, attempt)), [(500, 1000), (500, 1500), (500, 2500)]);
        }
        assert_eq!([0, 1].map(|attempt| range_ms(Sdk::Python, attempt)), [(100, 200), (100, 300)]);
        assert_eq!([0, 1].map(|attempt| range_ms(Sdk::Go, attempt)), [(200, 400), (200, 800)]);
    }

    #[test]
    fn no_wait_is_longer_than_twenty_seconds() {
        for sdk in Sdk::ALL {
            for attempt in [5, 10, 31, 32, u32::MAX] {
                assert!(sdk.delay(attempt, 0.999) <= DELAY_MAX, "{sdk:?} {attempt}");
            }
            assert_eq!(sdk.delay(40, 1.0), DELAY_MAX);
        }
    }
}
