/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Ends well, and needs no other file to do so. */
int main(void)
{
	return 0;
}
