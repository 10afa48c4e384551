//! The checksum of group descriptors: CRC-16 with the polynomial 0x8005, reflected, as in `lib/crc16.c` of the kernel.

const POLYNOMIAL: u16 = 0xa001;
const TABLE: [u16; 256] = table();

/// Goes on from `crc` over `bytes`.
pub(crate) fn crc16(crc: u16, bytes: &[u8]) -> u16 {
    bytes.iter().fold(crc, |crc, byte| {
        let at = usize::from(crc & 0xff ^ u16::from(*byte));
        crc >> 8 ^ TABLE.get(at).copied().unwrap_or(0)
    })
}

const fn table() -> [u16; 256] {
    let mut table = [0; 256];
    let mut remainder: u16 = 0;
    let mut rest: &mut [u16] = &mut table;
    while let Some((first, others)) = rest.split_first_mut() {
        let mut crc = remainder;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ POLYNOMIAL } else { crc >> 1 };
            bit += 1;
        }
        *first = crc;
        rest = others;
        remainder += 1;
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_check_value_of_crc_16_arc_comes_out() {
        assert_eq!(crc16(0, b"123456789"), 0xbb3d);
    }
}
