//! The one place that asks for the time of day.

use jiff::Timestamp;

/// The time of day, as this machine's clock says. It may be wrong and it may jump: nothing here makes it better.
pub fn now() -> Timestamp {
    #[cfg(feature = "simulate")]
    if let Some(now) = crate::simulate::now() {
        return now;
    }
    Timestamp::now()
}
