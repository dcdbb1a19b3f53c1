/* The floor of a one-shot command: a program that does nothing. */
int main(void) { return 0; }
