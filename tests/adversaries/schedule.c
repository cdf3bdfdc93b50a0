#include "adversaries.h"
void schedule(void)
{
}
