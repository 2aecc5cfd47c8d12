//! Faults by chance, repeatable from a seed.

/// How often faults happen by themselves, in thousandths. The default is never.
///
/// The same seed and the same order of calls and deliveries give the same faults. Calls and deliveries draw from
/// separate sequences, so that a call more does not change what happens to the deliveries.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct FaultPolicy {
    /// Where both sequences start.
    pub seed: u64,
    /// Calls that fail without having had an effect.
    pub fail_before_per_mille: u16,
    /// Calls that fail although they had their effect.
    pub fail_after_per_mille: u16,
    /// Deliveries that are lost.
    pub drop_per_mille: u16,
    /// Deliveries that come twice.
    pub duplicate_per_mille: u16,
    /// Deliveries that are overtaken by later ones of their channel.
    pub hold_per_mille: u16,
    /// By how many deliveries a held one is overtaken at most; 0 counts as 1.
    pub hold_deliveries_max: u16,
}

/// SplitMix64: three lines of arithmetic that stay the same for ever, so a printed seed can be replayed after any
/// update of a random number library.
#[derive(Debug, Default)]
pub(super) struct Dice(u64);

impl Dice {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number from 1 to `max`; 1 when `max` is 0.
    pub(super) fn up_to(&mut self, max: u16) -> u16 {
        // The remainder is at most 65,535, so the cast is exact; its bias of 2^-48 does not matter here.
        1 + (self.roll() % u64::from(max.max(1))) as u16
    }

    /// Picks at most one of several outcomes by their chances in thousandths.
    pub(super) fn pick<T: Copy>(&mut self, chances: &[(u16, T)]) -> Option<T> {
        let mut left = self.up_to(1_000);
        for &(per_mille, outcome) in chances {
            if left <= per_mille {
                return Some(outcome);
            }
            left -= per_mille;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chances_are_kept_and_repeat_with_the_seed() {
        let throw = |seed| {
            let mut dice = Dice::new(seed);
            (0..10_000).map(|_| dice.pick(&[(100, 'a'), (0, 'b'), (300, 'c')])).collect::<Vec<_>>()
        };
        let throws = throw(7);
        let count = |what| throws.iter().filter(|&&found| found == what).count();
        assert!((900..1_100).contains(&count(Some('a'))), "{}", count(Some('a')));
        assert!((2_800..3_200).contains(&count(Some('c'))), "{}", count(Some('c')));
        assert_eq!(count(Some('b')), 0);
        assert_eq!(throw(7), throws);
        assert_ne!(throw(8), throws);
    }

    #[test]
    fn never_and_always() {
        let mut dice = Dice::new(1);
        assert!((0..1_000).all(|_| dice.pick(&[(0, ())]).is_none()));
        assert!((0..1_000).all(|_| dice.pick(&[(1_000, ())]).is_some()));
        assert!((0..1_000).all(|_| (1..=3).contains(&dice.up_to(3))));
        assert_eq!(dice.up_to(0), 1);
    }
}
