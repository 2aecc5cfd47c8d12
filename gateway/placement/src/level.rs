//! The water level: pour the connections that are about to come over the nodes, and see how high they stand.

/// A node as the water sees it: its load, and how wide it is.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Vessel {
    /// Connections per unit of weight.
    pub load: f64,
    /// Connections that raise the load by one.
    pub weight: f64,
}

/// The level T at which the nodes below it take `volume` connections: the sum of `weight * (T - load)` over all nodes
/// with a load below T is the volume. `vessels` are in ascending order of load. Nothing for no nodes; the lowest load for
/// no volume.
pub fn water_level(vessels: &[Vessel], volume: f64) -> Option<f64> {
    let mut level = vessels.first()?.load;
    let mut width = 0.0;
    let mut left = volume.max(0.0);
    for (index, vessel) in vessels.iter().enumerate() {
        width += vessel.weight;
        let Some(next) = vessels.get(index + 1) else { break };
        let needed = width * (next.load - level);
        if needed > left {
            break;
        }
        left -= needed;
        level = next.load;
    }
    Some(level + left / width)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn vessels(loads: &[f64]) -> Vec<Vessel> {
        loads.iter().map(|&load| Vessel { load, weight: 1.0 }).collect()
    }

    #[test]
    fn water_fills_the_lowest_first() {
        let fleet = vessels(&[0.0, 10.0, 40.0]);
        for (volume, level) in [(0.0, 0.0), (5.0, 5.0), (10.0, 10.0), (30.0, 20.0), (70.0, 40.0), (100.0, 50.0)] {
            assert_eq!(water_level(&fleet, volume), Some(level), "{volume}");
        }
        assert_eq!(water_level(&[], 1.0), None);
        let wide = [Vessel { load: 0.0, weight: 3.0 }, Vessel { load: 10.0, weight: 1.0 }];
        assert_eq!(water_level(&wide, 38.0), Some(12.0));
    }

    proptest! {
        #[test]
        fn what_is_poured_in_is_what_stands_there(
            mut fleet in prop::collection::vec((0u32..1000, 1u32..50), 1..60),
            volume in 0.0f64..50_000.0,
        ) {
            fleet.sort_unstable();
            let fleet: Vec<_> = fleet
                .into_iter()
                .map(|(load, weight)| Vessel { load: f64::from(load), weight: f64::from(weight) / 10.0 })
                .collect();
            let level = water_level(&fleet, volume).expect("there are nodes");
            let stands: f64 = fleet.iter().map(|vessel| vessel.weight * (level - vessel.load).max(0.0)).sum();
            prop_assert!((stands - volume).abs() < 1e-6 * (1.0 + volume), "{stands} of {volume}");
        }
    }
}
