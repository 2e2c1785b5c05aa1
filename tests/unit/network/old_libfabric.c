/* SPDX-License-Identifier: Apache-2.0 */
/* Has the symbols of a libfabric that is too old. */
#include <stddef.h>

unsigned fi_version(void) { return 1u << 16 | 11u; }
const char* fi_strerror(int code) { return code == 0 ? "" : "old"; }
int fi_fabric(void* attributes, void** fabric, void* context) {
  return attributes == fabric && context == NULL ? 0 : -1;
}
int fi_getinfo(unsigned version, const char* node, const char* service, unsigned long long flags,
               const void* hints, void** info) {
  return version == 0 && node == service && flags == 0 && hints == info ? 0 : -1;
}
void fi_freeinfo(void* info) { (void)info; }
void* fi_dupinfo(const void* info) {
  (void)info;
  return NULL;
}
