//! Civil dates of the proleptic Gregorian calendar, and binary-coded decimal, as the real-time clock shows them.

/// A date and time of day, UTC.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Civil {
    pub year: u64,
    /// 1..=12
    pub month: u64,
    /// 1..=31
    pub day: u64,
    pub hour: u64,
    pub minute: u64,
    pub second: u64,
    /// 0 = Sunday.
    pub weekday: u64,
}

/// Days from 0000-03-01 to 1970-01-01.
const EPOCH_DAYS: u64 = 719_468;
const DAYS_PER_ERA: u64 = 146_097;

impl Civil {
    /// The date of a Unix time (years up to 9999; later ones wrap).
    pub fn from_unix(t: u64) -> Self {
        let (days, s) = (t / 86_400 % (25 * DAYS_PER_ERA), t % 86_400);
        let z = days + EPOCH_DAYS;
        let (era, doe) = (z / DAYS_PER_ERA, z % DAYS_PER_ERA);
        let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
        let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
        // Months counted from March.
        let mp = (5 * doy + 2) / 153;
        let month = if mp < 10 { mp + 3 } else { mp - 9 };
        Self {
            year: yoe + era * 400 + u64::from(month <= 2),
            month,
            day: doy - (153 * mp + 2) / 5 + 1,
            hour: s / 3600,
            minute: s / 60 % 60,
            second: s % 60,
            weekday: (days + 4) % 7,
        }
    }

    /// Unix time of a date; fields out of range carry over, dates before 1970 give 0.
    pub fn to_unix(self) -> u64 {
        let month = self.month.clamp(1, 12);
        let y = self.year - u64::from(month <= 2 && self.year > 0);
        let (era, yoe) = (y / 400, y % 400);
        let mp = (month + 9) % 12;
        let doy = (153 * mp + 2) / 5 + self.day.max(1) - 1;
        let doe = yoe * 365 + yoe / 4 - yoe / 100 + doy;
        let days = (era * DAYS_PER_ERA + doe).saturating_sub(EPOCH_DAYS);
        days * 86_400 + self.hour * 3600 + self.minute * 60 + self.second
    }
}

/// Two decimal digits.
pub fn to_bcd(v: u8) -> u8 {
    ((v / 10 % 10) << 4) | (v % 10)
}

/// The value of two decimal digits (digits above nine carry over).
pub fn from_bcd(v: u8) -> u8 {
    (v >> 4) * 10 + (v & 15)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_dates() {
        let c = Civil::from_unix(1_704_067_200);
        assert_eq!((c.year, c.month, c.day, c.hour, c.weekday), (2024, 1, 1, 0, 1));
        let c = Civil::from_unix(951_782_399);
        assert_eq!((c.year, c.month, c.day, c.hour, c.minute, c.second), (2000, 2, 28, 23, 59, 59));
        assert_eq!(Civil::from_unix(951_782_400).day, 29);
    }

    #[test]
    fn round_trip() {
        for day in (0..60_000).step_by(17) {
            let t = day * 86_400 + day % 86_400;
            assert_eq!(Civil::from_unix(t).to_unix(), t);
        }
    }
}
