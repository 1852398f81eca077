!> @file
!> libgridcpr for Fortran 2008: checkpoints that a program writes itself, and its part in checkpoints of the whole program.
!>
!>     use gridcpr
!>     type(checkpoint) :: state
!>     real(real64), target :: field(1000, 1000)
!>     integer(int64), target :: step
!>
!>     call state%open('/scratch', 'heat')
!>     call state%protect('field', field)
!>     call state%protect('step', step)
!>     generation = state%restore()
!>     ...
!>     generation = state%write()
!>
!> What is protected has to have the attribute target, and to stay where it is. Every procedure has an optional argument
!> `status`: 0, or one of the negative numbers GRIDCPR_E_* of gridcpr.h; without it, an error ends the program with the
!> library's message.

!> Checkpoints that a program writes itself, and its part in checkpoints of the whole program.
module gridcpr
  use, intrinsic :: iso_c_binding
  use, intrinsic :: iso_fortran_env, only: error_unit, int8, int16, int32, int64, real32, real64
  implicit none
  private

  public :: checkpoint, gridcpr_generation, gridcpr_notice, gridcpr_callback
  public :: gridcpr_error_text, gridcpr_enter, gridcpr_leave, gridcpr_register, gridcpr_unregister, gridcpr_explain
  public :: gridcpr_checkpoint_job, gridcpr_restarted, gridcpr_reason
  public :: gridcpr_file_policy, gridcpr_restart_generation, gridcpr_restart_image, gridcpr_restart_job

  !> What happens, in a notice: a checkpoint is about to be taken.
  integer(c_int), parameter, public :: gridcpr_before = 1
  !> The program goes on after it.
  integer(c_int), parameter, public :: gridcpr_continue = 2
  !> The program goes on from an image.
  integer(c_int), parameter, public :: gridcpr_restart = 3
  !> Something has happened: gridcpr_reason() says what.
  integer(c_int), parameter, public :: gridcpr_told = 4
  !> What a callback gives before a checkpoint: it can be taken.
  integer(c_int), parameter, public :: gridcpr_ready = 0
  !> Not now.
  integer(c_int), parameter, public :: gridcpr_later = 1
  !> It must not be taken.
  integer(c_int), parameter, public :: gridcpr_refuse = 2

  integer(c_int), parameter :: type_int8 = 0, type_int16 = 1, type_int32 = 2, type_int64 = 3, type_float32 = 8, type_float64 = 9
  integer(c_int), parameter :: type_complex64 = 10, type_complex128 = 11, fortran_order = 1

  integer, parameter :: path_length = 65536

  type, bind(c) :: restart_info
    integer(c_int32_t) :: size = 0
    integer(c_int32_t) :: times = 0
    character(kind=c_char) :: image(40) = c_null_char
    character(kind=c_char) :: job(72) = c_null_char
  end type

  type, bind(c) :: app_options
    integer(c_int32_t) :: size = 48
    integer(c_int32_t) :: rank = 0
    integer(c_int32_t) :: ranks = 1
    integer(c_int32_t) :: keep = 0
    integer(c_int64_t) :: lifetime = 0
    type(c_ptr) :: sequence = c_null_ptr
    type(c_ptr) :: session = c_null_ptr
  end type

  !> What a callback is told.
  type, bind(c) :: gridcpr_notice
    !> Bytes of this structure.
    integer(c_int32_t) :: size
    !> What happens, one of gridcpr_before to gridcpr_told.
    integer(c_int32_t) :: event
    !> Not 0 with gridcpr_continue: there is no checkpoint after all.
    integer(c_int32_t) :: failed
    !> How often the program was restarted.
    integer(c_int32_t) :: restarts
    !> Number of the checkpoint, the same before and after it.
    integer(c_int64_t) :: checkpoint
    !> See gridcpr_reason().
    type(c_ptr) :: reason
  end type

  !> A generation of a checkpoint.
  type, bind(c) :: gridcpr_generation
    !> Its number, from 1.
    integer(c_int64_t) :: generation
    !> When writing began: nanoseconds since the epoch.
    integer(c_int64_t) :: time_ns
    !> Bytes of all its files.
    integer(c_int64_t) :: bytes
    !> Seconds for which it is kept, where that was set for this one; else 0.
    integer(c_int64_t) :: lifetime
    !> 0: parts are missing; 1: complete; 2: damaged.
    integer(c_int32_t) :: state
    !> Parts that are there.
    integer(c_int32_t) :: parts
    !> Parts that there have to be.
    integer(c_int32_t) :: ranks
    !> How many other generations it needs.
    integer(c_int32_t) :: needs
  end type

  abstract interface
    !> What can be registered; it is called in another thread.
    function gridcpr_callback(notice, data) bind(c) result(verdict)
      import :: gridcpr_notice, c_ptr, c_int
      !> What happens.
      type(gridcpr_notice), intent(in) :: notice
      !> Of no meaning.
      type(c_ptr), value :: data
      !> gridcpr_ready, gridcpr_later or gridcpr_refuse.
      integer(c_int) :: verdict
    end function
  end interface

  !> A checkpoint that the program writes itself. To be used by one thread at a time.
  type :: checkpoint
    private
    type(c_ptr) :: app = c_null_ptr
  contains
    !> Opens it: base directory, name, and optionally the number of generations to keep, rank and number of ranks, which
    !> generations are full, for how many seconds one is kept, and what tells the runs of several ranks apart.
    procedure :: open => app_open
    !> Names a variable: integers of 8 to 64 bits, reals of 32 and 64 bits and complex numbers of them, with up to three
    !> dimensions; sections of arrays, too, with strides that are not negative.
    procedure, private :: protect_0, protect_1, protect_2, protect_3
    !> See protect_0.
    generic :: protect => protect_0, protect_1, protect_2, protect_3
    !> Forgets a variable.
    procedure :: unprotect => app_unprotect
    !> What generations written from now on remember.
    procedure :: set_attribute => app_set_attribute
    !> Writes all protected variables; gives the number of the generation.
    procedure :: write => app_write
    !> Copies them, and writes the copy while the program goes on.
    !> Gets the memory of copies beforehand, so that the first write_begin is as short as the others.
    procedure :: prepare => app_prepare
    procedure :: write_begin => app_write_begin
    !> Waits for the end of that; gives its number, or 0 where nothing was begun.
    procedure :: wait => app_wait
    !> Bytes done and in all, of that or of the last write.
    procedure :: progress => app_progress
    !> Fills all protected variables; gives the number of the generation, 0 where there is none yet.
    procedure :: restore => app_restore
    !> All generations, the oldest first; with a key and a value those that remember it.
    procedure :: generations => app_generations
    !> What a generation remembers.
    procedure :: attribute => app_attribute
    !> Changes that, or for how many seconds it is kept.
    procedure :: update => app_update
    !> Compares every hash of a generation.
    procedure :: validate => app_validate
    !> Removes a generation that no other one needs.
    procedure :: free => app_free
    !> Removes all generations, and what is known of them.
    procedure :: forget => app_forget
    !> Copies a complete generation below another base directory.
    procedure :: transfer => app_transfer
    !> Reads a 64-bit integer, or several, of a variable of any rank, from the one with this number (1 is the first) on.
    procedure :: read => app_read
    !> Where to write a file that is to belong to the next generation.
    procedure :: route => app_route
    !> Where such a file of a generation is, for reading.
    procedure :: file => app_file
    !> Waits for a background write, and closes.
    procedure :: close => app_close
  end type

  interface
    function c_error() bind(c, name='gridcpr_error')
      import :: c_ptr
      type(c_ptr) :: c_error
    end function
    function c_error_code() bind(c, name='gridcpr_error_code')
      import :: c_int
      integer(c_int) :: c_error_code
    end function
    function c_block() bind(c, name='gridcpr_block')
      import :: c_int
      integer(c_int) :: c_block
    end function
    function c_unblock() bind(c, name='gridcpr_unblock')
      import :: c_int
      integer(c_int) :: c_unblock
    end function
    function c_open(base, name, options) bind(c, name='gridcpr_app_open')
      import :: c_ptr, c_char, app_options
      character(kind=c_char), intent(in) :: base(*), name(*)
      type(app_options), intent(in) :: options
      type(c_ptr) :: c_open
    end function
    function c_close(app) bind(c, name='gridcpr_app_close')
      import :: c_ptr, c_int
      type(c_ptr), value :: app
      integer(c_int) :: c_close
    end function
    function c_protect(app, name, data, element, dimensions, shape, strides, order) &
      bind(c, name='gridcpr_app_protect_strided')
      import :: c_ptr, c_char, c_int, c_int64_t
      type(c_ptr), value :: app, data, strides
      character(kind=c_char), intent(in) :: name(*)
      integer(c_int), value :: element, dimensions, order
      integer(c_int64_t), intent(in) :: shape(*)
      integer(c_int) :: c_protect
    end function
    function c_progress(app, done, total) bind(c, name='gridcpr_app_progress')
      import :: c_ptr, c_int, c_int64_t
      type(c_ptr), value :: app
      integer(c_int64_t), intent(out) :: done, total
      integer(c_int) :: c_progress
    end function
    function c_query(app, found, count) bind(c, name='gridcpr_app_query')
      import :: c_ptr, c_int, c_size_t, gridcpr_generation
      type(c_ptr), value :: app
      type(gridcpr_generation), intent(out) :: found(*)
      integer(c_size_t), value :: count
      integer(c_int) :: c_query
    end function
    function c_find(app, key, text, found, count) bind(c, name='gridcpr_app_find')
      import :: c_ptr, c_char, c_int, c_size_t, gridcpr_generation
      type(c_ptr), value :: app
      character(kind=c_char), intent(in) :: key(*), text(*)
      type(gridcpr_generation), intent(out) :: found(*)
      integer(c_size_t), value :: count
      integer(c_int) :: c_find
    end function
    function c_attribute(app, generation, key, text, room) bind(c, name='gridcpr_app_get_attribute')
      import :: c_ptr, c_char, c_int, c_int64_t, c_size_t
      type(c_ptr), value :: app
      integer(c_int64_t), value :: generation
      character(kind=c_char), intent(in) :: key(*)
      character(kind=c_char), intent(out) :: text(*)
      integer(c_size_t), value :: room
      integer(c_int) :: c_attribute
    end function
    function c_update(app, generation, key, text, lifetime) bind(c, name='gridcpr_app_update')
      import :: c_ptr, c_char, c_int, c_int64_t
      type(c_ptr), value :: app
      integer(c_int64_t), value :: generation, lifetime
      character(kind=c_char), intent(in) :: key(*), text(*)
      integer(c_int) :: c_update
    end function
    function c_read(app, generation, rank, name, offset, place, length) bind(c, name='gridcpr_app_read')
      import :: c_ptr, c_char, c_int, c_int32_t, c_int64_t, c_size_t
      type(c_ptr), value :: app
      integer(c_int64_t), value :: generation, offset
      integer(c_int32_t), value :: rank
      character(kind=c_char), intent(in) :: name(*)
      integer(c_int64_t), intent(out) :: place(*)
      integer(c_size_t), value :: length
      integer(c_int) :: c_read
    end function
    function c_forget(app) bind(c, name='gridcpr_app_forget')
      import :: c_ptr, c_int
      type(c_ptr), value :: app
      integer(c_int) :: c_forget
    end function
    function c_transfer(app, generation, base) bind(c, name='gridcpr_app_transfer')
      import :: c_ptr, c_char, c_int, c_int64_t
      type(c_ptr), value :: app
      integer(c_int64_t), value :: generation
      character(kind=c_char), intent(in) :: base(*)
      integer(c_int) :: c_transfer
    end function
    function c_route(app, name, path, room) bind(c, name='gridcpr_app_route')
      import :: c_ptr, c_char, c_int, c_size_t
      type(c_ptr), value :: app
      character(kind=c_char), intent(in) :: name(*)
      character(kind=c_char), intent(out) :: path(*)
      integer(c_size_t), value :: room
      integer(c_int) :: c_route
    end function
    function c_file(app, generation, name, path, room) bind(c, name='gridcpr_app_file')
      import :: c_ptr, c_char, c_int, c_int64_t, c_size_t
      type(c_ptr), value :: app
      integer(c_int64_t), value :: generation
      character(kind=c_char), intent(in) :: name(*)
      character(kind=c_char), intent(out) :: path(*)
      integer(c_size_t), value :: room
      integer(c_int) :: c_file
    end function
    function c_register(callback, data, context) bind(c, name='gridcpr_register')
      import :: c_funptr, c_ptr, c_int
      type(c_funptr), value :: callback
      type(c_ptr), value :: data
      integer(c_int), value :: context
      integer(c_int) :: c_register
    end function
    function c_unregister(number) bind(c, name='gridcpr_unregister')
      import :: c_int
      integer(c_int), value :: number
      integer(c_int) :: c_unregister
    end function
    subroutine c_explain(reason) bind(c, name='gridcpr_explain')
      import :: c_char
      character(kind=c_char), intent(in) :: reason(*)
    end subroutine
    function c_checkpoint(flags, image, room) bind(c, name='gridcpr_checkpoint')
      import :: c_ptr, c_int, c_size_t
      integer(c_int), value :: flags
      type(c_ptr), value :: image
      integer(c_size_t), value :: room
      integer(c_int) :: c_checkpoint
    end function
    function c_restarted(found) bind(c, name='gridcpr_restarted')
      import :: c_int, restart_info
      type(restart_info), intent(inout) :: found
      integer(c_int) :: c_restarted
    end function
    function c_file_policy(pattern, policy) bind(c, name='gridcpr_file_policy')
      import :: c_char, c_int
      character(kind=c_char), intent(in) :: pattern(*), policy(*)
      integer(c_int) :: c_file_policy
    end function
    function c_generation() bind(c, name='gridcpr_generation')
      import :: c_int64_t
      integer(c_int64_t) :: c_generation
    end function
    function c_unprotect(app, name) bind(c, name='gridcpr_app_unprotect')
      import :: c_ptr, c_char, c_int
      type(c_ptr), value :: app
      character(kind=c_char), intent(in) :: name(*)
      integer(c_int) :: c_unprotect
    end function
    function c_set_attribute(app, key, text) bind(c, name='gridcpr_app_set_attribute')
      import :: c_ptr, c_char, c_int
      type(c_ptr), value :: app
      character(kind=c_char), intent(in) :: key(*), text(*)
      integer(c_int) :: c_set_attribute
    end function
    function c_write(app) bind(c, name='gridcpr_app_write')
      import :: c_ptr, c_int64_t
      type(c_ptr), value :: app
      integer(c_int64_t) :: c_write
    end function
    function c_prepare(app) bind(c, name='gridcpr_app_prepare')
      import :: c_ptr, c_int
      type(c_ptr), value :: app
      integer(c_int) :: c_prepare
    end function
    function c_write_begin(app) bind(c, name='gridcpr_app_write_begin')
      import :: c_ptr, c_int
      type(c_ptr), value :: app
      integer(c_int) :: c_write_begin
    end function
    function c_wait(app) bind(c, name='gridcpr_app_wait')
      import :: c_ptr, c_int64_t
      type(c_ptr), value :: app
      integer(c_int64_t) :: c_wait
    end function
    function c_restore(app, generation) bind(c, name='gridcpr_app_restore')
      import :: c_ptr, c_int64_t
      type(c_ptr), value :: app
      integer(c_int64_t), value :: generation
      integer(c_int64_t) :: c_restore
    end function
    function c_validate(app, generation) bind(c, name='gridcpr_app_validate')
      import :: c_ptr, c_int, c_int64_t
      type(c_ptr), value :: app
      integer(c_int64_t), value :: generation
      integer(c_int) :: c_validate
    end function
    function c_free(app, generation) bind(c, name='gridcpr_app_free')
      import :: c_ptr, c_int, c_int64_t
      type(c_ptr), value :: app
      integer(c_int64_t), value :: generation
      integer(c_int) :: c_free
    end function
    function c_strlen(text) bind(c, name='strlen')
      import :: c_ptr, c_size_t
      type(c_ptr), value :: text
      integer(c_size_t) :: c_strlen
    end function
  end interface

contains

  !> Why the last call that failed in this thread did.
  function gridcpr_error_text() result(text)
    character(len=:), allocatable :: text
    text = text_at(c_error())
  end function

  !> With gridcpr_told: what has happened; else empty.
  function gridcpr_reason(notice) result(text)
    !> What the callback was told.
    type(gridcpr_notice), intent(in) :: notice
    character(len=:), allocatable :: text
    text = text_at(notice%reason)
  end function

  function text_at(address) result(text)
    type(c_ptr), intent(in) :: address
    character(len=:), allocatable :: text
    character(kind=c_char), pointer :: bytes(:)
    call c_f_pointer(address, bytes, [c_strlen(address)])
    text = joined(bytes, size(bytes))
  end function

  function joined(bytes, length) result(text)
    character(kind=c_char), intent(in) :: bytes(:)
    integer, intent(in) :: length
    character(len=length) :: text
    integer :: i
    do i = 1, length
      text(i:i) = bytes(i)
    end do
  end function

  subroutine conclude(code, status)
    integer(c_int), intent(in) :: code
    integer, intent(out), optional :: status
    if (present(status)) then
      status = min(code, 0)
    else if (code < 0) then
      write (error_unit, '(2a)') 'gridcpr: ', gridcpr_error_text()
      error stop 1
    end if
  end subroutine

  !> Begins a section in which no checkpoint of the whole program is taken.
  subroutine gridcpr_enter(status)
    integer, intent(out), optional :: status
    call conclude(c_block(), status)
  end subroutine

  !> Ends it.
  subroutine gridcpr_leave(status)
    !> 0, or what went wrong.
    integer, intent(out), optional :: status
    call conclude(c_unblock(), status)
  end subroutine

  !> Registers a callback, which is called around checkpoints of the whole program; gives its number.
  function gridcpr_register(callback, status) result(number)
    !> What is called, in a thread of the library.
    procedure(gridcpr_callback) :: callback
    !> 0, or what went wrong.
    integer, intent(out), optional :: status
    integer :: number
    number = c_register(c_funloc(callback), c_null_ptr, 0_c_int)
    call conclude(int(min(number, 0), c_int), status)
  end function

  !> Removes a callback.
  subroutine gridcpr_unregister(number, status)
    !> What gridcpr_register() gave.
    integer, intent(in) :: number
    !> 0, or what went wrong.
    integer, intent(out), optional :: status
    call conclude(c_unregister(int(number, c_int)), status)
  end subroutine

  !> In a callback that refuses: why.
  subroutine gridcpr_explain(reason)
    !> Why.
    character(len=*), intent(in) :: reason
    call c_explain(trim(reason)//c_null_char)
  end subroutine

  !> Checkpoints the job that the program runs in; true in a program restarted from the image.
  function gridcpr_checkpoint_job(stop, status) result(restarted)
    !> Whether the job ends with that.
    logical, intent(in), optional :: stop
    !> 0, or what went wrong.
    integer, intent(out), optional :: status
    logical :: restarted
    integer(c_int) :: flags, outcome
    flags = 0
    if (present(stop)) flags = merge(1_c_int, 0_c_int, stop)
    outcome = c_checkpoint(flags, c_null_ptr, 0_c_size_t)
    restarted = outcome == 1
    call conclude(min(outcome, 0_c_int), status)
  end function

  !> How often the program was restarted from an image.
  function gridcpr_restarted(status) result(times)
    !> 0, or what went wrong.
    integer, intent(out), optional :: status
    integer :: times
    type(restart_info) :: found
    found%size = int(c_sizeof(found), c_int32_t)
    call conclude(min(c_restarted(found), 0_c_int), status)
    times = found%times
  end function

  !> How checkpoints of the job treat files, as cpr run --file PATTERN=POLICY does.
  subroutine gridcpr_file_policy(pattern, policy, status)
    !> Which files; taken below the working directory where it does not begin with a slash.
    character(len=*), intent(in) :: pattern
    !> What becomes of them, such as append.
    character(len=*), intent(in) :: policy
    !> 0, or what went wrong.
    integer, intent(out), optional :: status
    call conclude(c_file_policy(trim(pattern)//c_null_char, trim(policy)//c_null_char), status)
  end subroutine

  !> Number of the checkpoint that a restarted program goes on from, as callbacks were told; else 0.
  function gridcpr_restart_generation(status) result(generation)
    !> 0, or what went wrong.
    integer, intent(out), optional :: status
    integer(c_int64_t) :: generation
    generation = c_generation()
    call conclude(int(min(generation, 0_c_int64_t), c_int), status)
  end function

  !> Identifier of the image that the program was restarted from; else empty.
  function gridcpr_restart_image(status) result(image)
    !> 0, or what went wrong.
    integer, intent(out), optional :: status
    character(len=:), allocatable :: image
    type(restart_info) :: found
    found%size = int(c_sizeof(found), c_int32_t)
    call conclude(min(c_restarted(found), 0_c_int), status)
    image = text_of(found%image)
  end function

  !> Name of the job that the program was restarted as; else empty.
  function gridcpr_restart_job(status) result(job)
    !> 0, or what went wrong.
    integer, intent(out), optional :: status
    character(len=:), allocatable :: job
    type(restart_info) :: found
    found%size = int(c_sizeof(found), c_int32_t)
    call conclude(min(c_restarted(found), 0_c_int), status)
    job = text_of(found%job)
  end function

  ! What stands before the zero.
  function text_of(field) result(text)
    character(kind=c_char), intent(in) :: field(:)
    character(len=:), allocatable :: text
    integer :: i
    text = ''
    do i = 1, size(field)
      if (field(i) == c_null_char) exit
      text = text//field(i)
    end do
  end function

  subroutine app_open(self, base, name, keep, rank, ranks, sequence, lifetime, session, status)
    class(checkpoint), intent(inout) :: self
    character(len=*), intent(in) :: base, name
    integer, intent(in), optional :: keep, rank, ranks
    character(len=*), intent(in), optional :: sequence
    integer, intent(in), optional :: lifetime
    character(len=*), intent(in), optional :: session
    integer, intent(out), optional :: status
    type(app_options) :: options
    character(kind=c_char, len=:), allocatable, target :: kinds, run
    if (present(keep)) options%keep = keep
    if (present(rank)) options%rank = rank
    if (present(ranks)) options%ranks = ranks
    if (present(lifetime)) options%lifetime = lifetime
    if (present(sequence)) then
      kinds = trim(sequence)//c_null_char
      options%sequence = c_loc(kinds)
    end if
    if (present(session)) then
      run = trim(session)//c_null_char
      options%session = c_loc(run)
    end if
    options%size = int(c_sizeof(options), c_int32_t)
    call app_close(self)
    self%app = c_open(trim(base)//c_null_char, trim(name)//c_null_char, options)
    if (c_associated(self%app)) then
      call conclude(0_c_int, status)
    else
      call conclude(c_error_code(), status)
    end if
  end subroutine

  !> Names a variable.
  subroutine protect_0(self, name, data, status)
    class(checkpoint), intent(in) :: self
    character(len=*), intent(in) :: name
    class(*), intent(in), target :: data
    integer, intent(out), optional :: status
    integer(c_int64_t) :: none(0)
    call protect_address(self, name, address_of(data), element_of(data), none, none, status)
  end subroutine

  subroutine protect_1(self, name, data, status)
    class(checkpoint), intent(in) :: self
    character(len=*), intent(in) :: name
    class(*), intent(in), target :: data(:)
    integer, intent(out), optional :: status
    class(*), allocatable :: sample(:)
    integer(c_int64_t) :: strides(1)
    strides = 0
    if (size(data) == 0) then
      allocate (sample(1), mold=data)
      call protect_address(self, name, c_null_ptr, element_of(sample(1)), shape(data, c_int64_t), strides, status)
      return
    end if
    if (size(data) > 1) strides(1) = distance(data(1), data(2))
    call protect_address(self, name, address_of(data(1)), element_of(data(1)), shape(data, c_int64_t), strides, status)
  end subroutine

  subroutine protect_2(self, name, data, status)
    class(checkpoint), intent(in) :: self
    character(len=*), intent(in) :: name
    class(*), intent(in), target :: data(:, :)
    integer, intent(out), optional :: status
    class(*), allocatable :: sample(:, :)
    integer(c_int64_t) :: strides(2)
    strides = 0
    if (size(data) == 0) then
      allocate (sample(1, 1), mold=data)
      call protect_address(self, name, c_null_ptr, element_of(sample(1, 1)), shape(data, c_int64_t), strides, status)
      return
    end if
    if (size(data, 1) > 1) strides(1) = distance(data(1, 1), data(2, 1))
    if (size(data, 2) > 1) strides(2) = distance(data(1, 1), data(1, 2))
    call protect_address(self, name, address_of(data(1, 1)), element_of(data(1, 1)), shape(data, c_int64_t), strides, &
                         status)
  end subroutine

  subroutine protect_3(self, name, data, status)
    class(checkpoint), intent(in) :: self
    character(len=*), intent(in) :: name
    class(*), intent(in), target :: data(:, :, :)
    integer, intent(out), optional :: status
    class(*), allocatable :: sample(:, :, :)
    integer(c_int64_t) :: strides(3)
    strides = 0
    if (size(data) == 0) then
      allocate (sample(1, 1, 1), mold=data)
      call protect_address(self, name, c_null_ptr, element_of(sample(1, 1, 1)), shape(data, c_int64_t), strides, status)
      return
    end if
    if (size(data, 1) > 1) strides(1) = distance(data(1, 1, 1), data(2, 1, 1))
    if (size(data, 2) > 1) strides(2) = distance(data(1, 1, 1), data(1, 2, 1))
    if (size(data, 3) > 1) strides(3) = distance(data(1, 1, 1), data(1, 1, 2))
    call protect_address(self, name, address_of(data(1, 1, 1)), element_of(data(1, 1, 1)), shape(data, c_int64_t), &
                         strides, status)
  end subroutine

  function element_of(data) result(element)
    class(*), intent(in) :: data
    integer(c_int) :: element
    select type (data)
    type is (integer(int8))
      element = type_int8
    type is (integer(int16))
      element = type_int16
    type is (integer(int32))
      element = type_int32
    type is (integer(int64))
      element = type_int64
    type is (real(real32))
      element = type_float32
    type is (real(real64))
      element = type_float64
    type is (complex(real32))
      element = type_complex64
    type is (complex(real64))
      element = type_complex128
    class default
      error stop 'gridcpr: variables of this type cannot be protected'
    end select
  end function

  function address_of(data) result(address)
    class(*), intent(in), target :: data
    type(c_ptr) :: address
    select type (data)
    type is (integer(int8))
      address = c_loc(data)
    type is (integer(int16))
      address = c_loc(data)
    type is (integer(int32))
      address = c_loc(data)
    type is (integer(int64))
      address = c_loc(data)
    type is (real(real32))
      address = c_loc(data)
    type is (real(real64))
      address = c_loc(data)
    type is (complex(real32))
      address = c_loc(data)
    type is (complex(real64))
      address = c_loc(data)
    class default
      error stop 'gridcpr: variables of this type cannot be protected'
    end select
  end function

  !> Bytes from one element to another.
  function distance(from, to) result(bytes)
    class(*), intent(in), target :: from, to
    integer(c_int64_t) :: bytes
    bytes = transfer(address_of(to), bytes) - transfer(address_of(from), bytes)
  end function

  subroutine protect_address(self, name, address, element, extents, strides, status)
    class(checkpoint), intent(in) :: self
    character(len=*), intent(in) :: name
    type(c_ptr), intent(in) :: address
    integer(c_int), intent(in) :: element
    integer(c_int64_t), intent(in) :: extents(:)
    integer(c_int64_t), intent(in), target :: strides(:)
    integer, intent(out), optional :: status
    integer(c_int64_t), parameter :: sizes(0:11) = [1, 2, 4, 8, 1, 2, 4, 8, 4, 8, 8, 16]
    integer(c_int64_t) :: dense
    integer :: i
    logical :: whole
    type(c_ptr) :: apart
    dense = sizes(element)
    whole = .true.
    do i = 1, size(extents)
      if (extents(i) > 1 .and. strides(i) /= dense) whole = .false.
      dense = dense*extents(i)
    end do
    if (any(strides < 0)) then
      error stop 'gridcpr: sections that run backwards cannot be protected'
    end if
    apart = c_null_ptr
    if (.not. whole) apart = c_loc(strides)
    call conclude(c_protect(self%app, trim(name)//c_null_char, address, element, size(extents, kind=c_int), extents, &
                            apart, fortran_order), status)
  end subroutine

  subroutine app_progress(self, done, total, status)
    class(checkpoint), intent(in) :: self
    integer(int64), intent(out) :: done, total
    integer, intent(out), optional :: status
    call conclude(min(c_progress(self%app, done, total), 0_c_int), status)
  end subroutine

  function app_generations(self, key, text, status) result(found)
    class(checkpoint), intent(in) :: self
    character(len=*), intent(in), optional :: key, text
    integer, intent(out), optional :: status
    type(gridcpr_generation), allocatable :: found(:)
    integer(c_size_t) :: room
    integer(c_int) :: count
    room = 64
    do
      if (allocated(found)) deallocate (found)
      allocate (found(room))
      if (present(key) .and. present(text)) then
        count = c_find(self%app, trim(key)//c_null_char, trim(text)//c_null_char, found, room)
      else
        count = c_query(self%app, found, room)
      end if
      if (count <= room) exit
      room = count
    end do
    found = found(:max(count, 0))
    call conclude(min(count, 0_c_int), status)
  end function

  function app_attribute(self, generation, key, status) result(text)
    class(checkpoint), intent(in) :: self
    integer(int64), intent(in) :: generation
    character(len=*), intent(in) :: key
    integer, intent(out), optional :: status
    character(len=:), allocatable :: text
    character(kind=c_char) :: bytes(path_length)
    integer(c_int) :: length
    length = c_attribute(self%app, generation, trim(key)//c_null_char, bytes, int(path_length, c_size_t))
    text = joined(bytes, min(max(length, 0), path_length - 1))
    call conclude(min(length, 0_c_int), status)
  end function

  subroutine app_update(self, generation, key, text, lifetime, status)
    class(checkpoint), intent(in) :: self
    integer(int64), intent(in) :: generation
    character(len=*), intent(in), optional :: key, text
    integer, intent(in), optional :: lifetime
    integer, intent(out), optional :: status
    character(len=:), allocatable :: name, new
    integer(c_int64_t) :: seconds
    name = ''
    new = ''
    seconds = 0
    if (present(key)) name = trim(key)
    if (present(text)) new = trim(text)
    if (present(lifetime)) seconds = lifetime
    call conclude(c_update(self%app, generation, name//c_null_char, new//c_null_char, seconds), status)
  end subroutine

  subroutine app_read(self, generation, rank, name, first, place, status)
    class(checkpoint), intent(in) :: self
    integer(int64), intent(in) :: generation
    integer, intent(in) :: rank
    character(len=*), intent(in) :: name
    integer(int64), intent(in) :: first
    integer(int64), intent(out), contiguous :: place(:)
    integer, intent(out), optional :: status
    call conclude(c_read(self%app, generation, int(rank, c_int32_t), trim(name)//c_null_char, (first - 1)*8, place, &
                         size(place, kind=c_size_t)*8), status)
  end subroutine

  subroutine app_forget(self, status)
    class(checkpoint), intent(in) :: self
    integer, intent(out), optional :: status
    call conclude(c_forget(self%app), status)
  end subroutine

  subroutine app_transfer(self, generation, base, status)
    class(checkpoint), intent(in) :: self
    integer(int64), intent(in) :: generation
    character(len=*), intent(in) :: base
    integer, intent(out), optional :: status
    call conclude(c_transfer(self%app, generation, trim(base)//c_null_char), status)
  end subroutine

  function app_route(self, name, status) result(path)
    class(checkpoint), intent(in) :: self
    character(len=*), intent(in) :: name
    integer, intent(out), optional :: status
    character(len=:), allocatable :: path
    character(kind=c_char) :: bytes(path_length)
    integer(c_int) :: length
    length = c_route(self%app, trim(name)//c_null_char, bytes, int(path_length, c_size_t))
    path = joined(bytes, max(length, 0))
    call conclude(min(length, 0_c_int), status)
  end function

  function app_file(self, generation, name, status) result(path)
    class(checkpoint), intent(in) :: self
    integer(int64), intent(in) :: generation
    character(len=*), intent(in) :: name
    integer, intent(out), optional :: status
    character(len=:), allocatable :: path
    character(kind=c_char) :: bytes(path_length)
    integer(c_int) :: length
    length = c_file(self%app, generation, trim(name)//c_null_char, bytes, int(path_length, c_size_t))
    path = joined(bytes, max(length, 0))
    call conclude(min(length, 0_c_int), status)
  end function

  subroutine app_unprotect(self, name, status)
    class(checkpoint), intent(in) :: self
    character(len=*), intent(in) :: name
    integer, intent(out), optional :: status
    call conclude(c_unprotect(self%app, trim(name)//c_null_char), status)
  end subroutine

  subroutine app_set_attribute(self, key, text, status)
    class(checkpoint), intent(in) :: self
    character(len=*), intent(in) :: key, text
    integer, intent(out), optional :: status
    call conclude(c_set_attribute(self%app, trim(key)//c_null_char, trim(text)//c_null_char), status)
  end subroutine

  function app_write(self, status) result(generation)
    class(checkpoint), intent(in) :: self
    integer, intent(out), optional :: status
    integer(int64) :: generation
    generation = c_write(self%app)
    call conclude(int(min(generation, 0_int64), c_int), status)
  end function

  subroutine app_prepare(self, status)
    class(checkpoint), intent(in) :: self
    integer, intent(out), optional :: status
    call conclude(c_prepare(self%app), status)
  end subroutine

  subroutine app_write_begin(self, status)
    class(checkpoint), intent(in) :: self
    integer, intent(out), optional :: status
    call conclude(c_write_begin(self%app), status)
  end subroutine

  function app_wait(self, status) result(generation)
    class(checkpoint), intent(in) :: self
    integer, intent(out), optional :: status
    integer(int64) :: generation
    generation = c_wait(self%app)
    call conclude(int(min(generation, 0_int64), c_int), status)
  end function

  function app_restore(self, generation, status) result(found)
    class(checkpoint), intent(in) :: self
    integer(int64), intent(in), optional :: generation
    integer, intent(out), optional :: status
    integer(int64) :: found
    if (present(generation)) then
      found = c_restore(self%app, generation)
    else
      found = c_restore(self%app, 0_c_int64_t)
    end if
    call conclude(int(min(found, 0_int64), c_int), status)
  end function

  subroutine app_validate(self, generation, status)
    class(checkpoint), intent(in) :: self
    integer(int64), intent(in) :: generation
    integer, intent(out), optional :: status
    call conclude(c_validate(self%app, generation), status)
  end subroutine

  subroutine app_free(self, generation, status)
    class(checkpoint), intent(in) :: self
    integer(int64), intent(in) :: generation
    integer, intent(out), optional :: status
    call conclude(c_free(self%app, generation), status)
  end subroutine

  subroutine app_close(self, status)
    class(checkpoint), intent(inout) :: self
    integer, intent(out), optional :: status
    integer(c_int) :: code
    code = c_close(self%app)
    self%app = c_null_ptr
    call conclude(code, status)
  end subroutine
end module
