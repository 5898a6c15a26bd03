//! Search among ascending numbers that often are spread evenly: heads of hashes, of consecutive numbers.
//!
//! A binary search of an array that is in no cache waits for one line after the other. Starting where the target would
//! be if the numbers were spread evenly, and doubling the distance from there, touches two or three lines when they
//! are, and no more than twice as many as a binary search when they are not.

/// The first index in `0..len` at which `at` is at least `target`, or `len`. `guess` may be any index.
#[inline]
pub(crate) fn lower_bound<T: Ord>(
    len: usize,
    at: impl Fn(usize) -> T,
    target: &T,
    guess: usize,
) -> usize {
    if len == 0 {
        return 0;
    }
    let guess = guess.min(len - 1);
    // Everything before `low` is below the target, nothing from `high` on is.
    let (mut low, mut high);
    let mut step = 1;
    if at(guess) < *target {
        low = guess + 1;
        loop {
            high = low + step;
            if high > len {
                high = len;
                break;
            }
            if at(high - 1) >= *target {
                high -= 1;
                break;
            }
            low = high;
            step *= 2;
        }
    } else {
        high = guess;
        loop {
            if step > high {
                low = 0;
                break;
            }
            low = high - step;
            if at(low) < *target {
                low += 1;
                break;
            }
            high = low;
            step *= 2;
        }
    }
    while low < high {
        let middle = low + (high - low) / 2;
        if at(middle) < *target {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    low
}

/// Where `target` would be among `len` numbers spread evenly from `first` to `last`.
#[inline]
pub(crate) fn guess_u32(len: usize, first: u32, last: u32, target: u32) -> usize {
    let offset = u64::from(target.saturating_sub(first));
    let span = u64::from(last.saturating_sub(first)) + 1;
    (offset * len as u64 / span) as usize
}

/// As `guess_u32`.
#[inline]
pub(crate) fn guess_u128(len: usize, first: u128, last: u128, target: u128) -> usize {
    let span = last.saturating_sub(first);
    let shift = (128 - span.leading_zeros()).saturating_sub(32);
    let offset = (target.min(last).saturating_sub(first) >> shift) as u64;
    let span = (span >> shift) as u64 + 1;
    (offset * len as u64 / span) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_guess_finds_the_lower_bound() {
        let arrays: [&[u128]; 6] = [
            &[],
            &[7],
            &[7, 7, 7],
            &[1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144],
            &[0, 1 << 40, 1 << 80, 1 << 120, u128::MAX - 1, u128::MAX],
            &[5, 5, 6, 6, 6, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 12],
        ];
        for array in arrays {
            let around = array
                .iter()
                .flat_map(|number| [number.saturating_sub(1), *number, number.saturating_add(1)]);
            for target in around.chain([0, u128::MAX]) {
                let expected = array.partition_point(|number| *number < target);
                for guess in 0..array.len() + 2 {
                    assert_eq!(
                        lower_bound(array.len(), |index| array[index], &target, guess),
                        expected
                    );
                }
                if let [first, .., last] = array {
                    let guess = guess_u128(array.len(), *first, *last, target);
                    assert!(guess <= array.len(), "{array:?} {target}");
                }
            }
        }
    }
}
