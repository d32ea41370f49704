/*-------------------------------------------------------------------------
 *
 * value.c
 *	  Decimals, bits and points as Debezium has them.
 *
 *-------------------------------------------------------------------------
 */
#include "tablesync.h"

#include "compat.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "utils/fmgrprotos.h"
#include "utils/varbit.h"

TSYNC_FUNCTION_INFO_V1(tsync_decimal_bytes);
TSYNC_FUNCTION_INFO_V1(tsync_bit_bytes);
TSYNC_FUNCTION_INFO_V1(tsync_point_wkb);

/* Append a digit to a big-endian number of some bytes. */
static void
append_digit(uint8 *bytes, int nbytes, int digit)
{
	int			carry = digit;

	for (int i = nbytes - 1; i >= 0; i--)
	{
		carry += bytes[i] * 10;
		bytes[i] = carry & 0xFF;
		carry >>= 8;
	}
}

/* The other way round in two's complement. */
static void
negate(uint8 *bytes, int nbytes)
{
	int			carry = 1;

	for (int i = nbytes - 1; i >= 0; i--)
	{
		carry += (uint8) ~bytes[i];
		bytes[i] = carry & 0xFF;
		carry >>= 8;
	}
}

/* The digits of a decimal times a power of ten, without what is left behind the point. */
static char *
unscaled_digits(const char *decimal, int scale)
{
	const char *point = strchr(decimal, '.');
	int			whole = point ? point - decimal : strlen(decimal);
	int			fraction = point ? strlen(point + 1) : 0;
	char	   *digits = palloc(whole + Max(scale, 0) + 1);
	int			n = Max(scale < 0 ? whole + scale : whole, 0);

	memcpy(digits, decimal, n);
	for (int i = 0; i < scale; i++)
		digits[n++] = i < fraction ? point[1 + i] : '0';
	digits[n] = '\0';
	return digits;
}

/* tablesync.decimal_bytes(numeric, integer): as few bytes as hold the sign */
Datum
tsync_decimal_bytes(PG_FUNCTION_ARGS)
{
	char	   *decimal = DatumGetCString(DirectFunctionCall1(numeric_out, PG_GETARG_DATUM(0)));
	int			scale = PG_GETARG_INT32(1);
	bool		negative = decimal[0] == '-';
	char	   *digits;
	int			nbytes;
	int			first = 0;
	bytea	   *result;
	uint8	   *bytes;

	if (decimal[negative ? 1 : 0] < '0' || decimal[negative ? 1 : 0] > '9')
		PG_RETURN_NULL();		/* NaN, Infinity */
	if (scale < -1000 || scale > 16383)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("scale of a decimal must be between -1000 and 16383")));
	digits = unscaled_digits(decimal + negative, scale);
	nbytes = strlen(digits) / 2 + 2;	/* more than log(10) / log(256) of them, and a sign */
	bytes = palloc0(nbytes);
	for (char *digit = digits; *digit; digit++)
	{
		CHECK_FOR_INTERRUPTS();
		append_digit(bytes, nbytes, *digit - '0');
	}
	if (negative)
		negate(bytes, nbytes);
	/* a byte that only repeats the sign of the next one is not needed */
	while (first < nbytes - 1 && bytes[first] == (bytes[first + 1] & 0x80 ? 0xFF : 0))
		first++;
	result = palloc(VARHDRSZ + nbytes - first);
	SET_VARSIZE(result, VARHDRSZ + nbytes - first);
	memcpy(VARDATA(result), bytes + first, nbytes - first);
	PG_RETURN_BYTEA_P(result);
}

/* tablesync.bit_bytes(bit varying): a bit set, in which the last bit is the first; bytes behind the last one that is set are left out */
Datum
tsync_bit_bytes(PG_FUNCTION_ARGS)
{
	VarBit	   *bits = PG_GETARG_VARBIT_P(0);
	int			nbits = VARBITLEN(bits);
	int			nbytes = (nbits + 7) / 8;
	bytea	   *result = palloc0(VARHDRSZ + nbytes);
	uint8	   *bytes = (uint8 *) VARDATA(result);

	for (int i = 0; i < nbits; i++)
	{
		int			bit = nbits - 1 - i;

		if (VARBITS(bits)[bit / 8] & (HIGHBIT >> (bit % 8)))
			bytes[i / 8] |= 1 << (i % 8);
	}
	while (nbytes > 0 && bytes[nbytes - 1] == 0)
		nbytes--;
	SET_VARSIZE(result, VARHDRSZ + nbytes);
	PG_RETURN_BYTEA_P(result);
}

/* Write eight bytes, the lowest first. */
static void
put_little_endian(uint8 *bytes, uint64 value)
{
	for (int i = 0; i < 8; i++)
		bytes[i] = (value >> (8 * i)) & 0xFF;
}

static uint64
bits_of(double value)
{
	uint64		bits;

	memcpy(&bits, &value, sizeof(bits));
	return bits;
}

/* tablesync.point_wkb(x, y): byte order (1), type (1, a point) in four bytes, x, y */
Datum
tsync_point_wkb(PG_FUNCTION_ARGS)
{
	bytea	   *result = palloc0(VARHDRSZ + 21);
	uint8	   *bytes = (uint8 *) VARDATA(result);

	SET_VARSIZE(result, VARHDRSZ + 21);
	bytes[0] = bytes[1] = 1;
	put_little_endian(bytes + 5, bits_of(PG_GETARG_FLOAT8(0)));
	put_little_endian(bytes + 13, bits_of(PG_GETARG_FLOAT8(1)));
	PG_RETURN_BYTEA_P(result);
}
