! libgridcpr for Fortran 2008: checkpoints that a program writes itself, and critical sections.
!
!   use gridcpr
!   type(checkpoint) :: state
!   real(real64), target :: field(1000, 1000)
!   integer(int64), target :: step
!
!   call state%open('/scratch', 'heat')
!   call state%protect('field', field)
!   call state%protect('step', step)
!   generation = state%restore()
!   ...
!   generation = state%write()
!
! What is protected has to have the attribute target, and to stay where it is. Every procedure has an optional argument
! `status`; without it, an error ends the program with the library's message.
module gridcpr
  use, intrinsic :: iso_c_binding
  use, intrinsic :: iso_fortran_env, only: error_unit, int32, int64, real32, real64
  implicit none
  private

  public :: checkpoint, gridcpr_error_text, gridcpr_enter, gridcpr_leave

  integer(c_int), parameter :: type_int32 = 2, type_int64 = 3, type_float32 = 8, type_float64 = 9
  integer(c_int), parameter :: type_complex64 = 10, type_complex128 = 11, fortran_order = 1

  type, bind(c) :: app_options
    integer(c_int32_t) :: size = 48
    integer(c_int32_t) :: rank = 0
    integer(c_int32_t) :: ranks = 1
    integer(c_int32_t) :: keep = 0
    integer(c_int64_t) :: lifetime = 0
    type(c_ptr) :: sequence = c_null_ptr
    type(c_ptr) :: session = c_null_ptr
  end type

  !> A checkpoint that the program writes itself.
  type :: checkpoint
    private
    type(c_ptr) :: app = c_null_ptr
  contains
    !> Opens it: base directory, name, and optionally the number of generations to keep, rank and number of ranks, and
    !> which generations are full.
    procedure :: open => app_open
    !> Names a variable: integers and reals of 32 and 64 bits and complex numbers of them, with up to three dimensions.
    procedure, private :: protect_0, protect_1, protect_2, protect_3
    generic :: protect => protect_0, protect_1, protect_2, protect_3
    procedure :: unprotect => app_unprotect
    procedure :: set_attribute => app_set_attribute
    !> Writes all protected variables; gives the number of the generation.
    procedure :: write => app_write
    !> Copies them, and writes the copy while the program goes on.
    procedure :: write_begin => app_write_begin
    procedure :: wait => app_wait
    !> Fills all protected variables; gives the number of the generation, 0 where there is none yet.
    procedure :: restore => app_restore
    procedure :: validate => app_validate
    procedure :: free => app_free
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
    function c_protect(app, name, data, element, dimensions, shape, order) bind(c, name='gridcpr_app_protect')
      import :: c_ptr, c_char, c_int, c_int64_t
      type(c_ptr), value :: app, data
      character(kind=c_char), intent(in) :: name(*)
      integer(c_int), value :: element, dimensions, order
      integer(c_int64_t), intent(in) :: shape(*)
      integer(c_int) :: c_protect
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
    character(kind=c_char), pointer :: bytes(:)
    type(c_ptr) :: message
    integer :: i
    message = c_error()
    call c_f_pointer(message, bytes, [c_strlen(message)])
    allocate (character(len=size(bytes)) :: text)
    do i = 1, size(bytes)
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
    integer, intent(out), optional :: status
    call conclude(c_unblock(), status)
  end subroutine

  subroutine app_open(self, base, name, keep, rank, ranks, sequence, status)
    class(checkpoint), intent(inout) :: self
    character(len=*), intent(in) :: base, name
    integer, intent(in), optional :: keep, rank, ranks
    character(len=*), intent(in), optional :: sequence
    integer, intent(out), optional :: status
    type(app_options) :: options
    character(kind=c_char, len=:), allocatable, target :: kinds
    if (present(keep)) options%keep = keep
    if (present(rank)) options%rank = rank
    if (present(ranks)) options%ranks = ranks
    if (present(sequence)) then
      kinds = trim(sequence)//c_null_char
      options%sequence = c_loc(kinds)
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

  subroutine protect_0(self, name, data, status)
    class(checkpoint), intent(in) :: self
    character(len=*), intent(in) :: name
    class(*), intent(in), target :: data
    integer, intent(out), optional :: status
    select type (data)
    type is (integer(int32))
      call protect_address(self, name, c_loc(data), type_int32, shape(data, kind=c_int64_t), status)
    type is (integer(int64))
      call protect_address(self, name, c_loc(data), type_int64, shape(data, kind=c_int64_t), status)
    type is (real(real32))
      call protect_address(self, name, c_loc(data), type_float32, shape(data, kind=c_int64_t), status)
    type is (real(real64))
      call protect_address(self, name, c_loc(data), type_float64, shape(data, kind=c_int64_t), status)
    type is (complex(real32))
      call protect_address(self, name, c_loc(data), type_complex64, shape(data, kind=c_int64_t), status)
    type is (complex(real64))
      call protect_address(self, name, c_loc(data), type_complex128, shape(data, kind=c_int64_t), status)
    class default
      error stop 'gridcpr: variables of this type cannot be protected'
    end select
  end subroutine

  subroutine protect_1(self, name, data, status)
    class(checkpoint), intent(in) :: self
    character(len=*), intent(in) :: name
    class(*), intent(in), target, contiguous :: data(:)
    integer, intent(out), optional :: status
    select type (data)
    type is (integer(int32))
      call protect_address(self, name, c_loc(data), type_int32, shape(data, kind=c_int64_t), status)
    type is (integer(int64))
      call protect_address(self, name, c_loc(data), type_int64, shape(data, kind=c_int64_t), status)
    type is (real(real32))
      call protect_address(self, name, c_loc(data), type_float32, shape(data, kind=c_int64_t), status)
    type is (real(real64))
      call protect_address(self, name, c_loc(data), type_float64, shape(data, kind=c_int64_t), status)
    type is (complex(real32))
      call protect_address(self, name, c_loc(data), type_complex64, shape(data, kind=c_int64_t), status)
    type is (complex(real64))
      call protect_address(self, name, c_loc(data), type_complex128, shape(data, kind=c_int64_t), status)
    class default
      error stop 'gridcpr: variables of this type cannot be protected'
    end select
  end subroutine

  subroutine protect_2(self, name, data, status)
    class(checkpoint), intent(in) :: self
    character(len=*), intent(in) :: name
    class(*), intent(in), target, contiguous :: data(:, :)
    integer, intent(out), optional :: status
    select type (data)
    type is (integer(int32))
      call protect_address(self, name, c_loc(data), type_int32, shape(data, kind=c_int64_t), status)
    type is (integer(int64))
      call protect_address(self, name, c_loc(data), type_int64, shape(data, kind=c_int64_t), status)
    type is (real(real32))
      call protect_address(self, name, c_loc(data), type_float32, shape(data, kind=c_int64_t), status)
    type is (real(real64))
      call protect_address(self, name, c_loc(data), type_float64, shape(data, kind=c_int64_t), status)
    type is (complex(real32))
      call protect_address(self, name, c_loc(data), type_complex64, shape(data, kind=c_int64_t), status)
    type is (complex(real64))
      call protect_address(self, name, c_loc(data), type_complex128, shape(data, kind=c_int64_t), status)
    class default
      error stop 'gridcpr: variables of this type cannot be protected'
    end select
  end subroutine

  subroutine protect_3(self, name, data, status)
    class(checkpoint), intent(in) :: self
    character(len=*), intent(in) :: name
    class(*), intent(in), target, contiguous :: data(:, :, :)
    integer, intent(out), optional :: status
    select type (data)
    type is (integer(int32))
      call protect_address(self, name, c_loc(data), type_int32, shape(data, kind=c_int64_t), status)
    type is (integer(int64))
      call protect_address(self, name, c_loc(data), type_int64, shape(data, kind=c_int64_t), status)
    type is (real(real32))
      call protect_address(self, name, c_loc(data), type_float32, shape(data, kind=c_int64_t), status)
    type is (real(real64))
      call protect_address(self, name, c_loc(data), type_float64, shape(data, kind=c_int64_t), status)
    type is (complex(real32))
      call protect_address(self, name, c_loc(data), type_complex64, shape(data, kind=c_int64_t), status)
    type is (complex(real64))
      call protect_address(self, name, c_loc(data), type_complex128, shape(data, kind=c_int64_t), status)
    class default
      error stop 'gridcpr: variables of this type cannot be protected'
    end select
  end subroutine

  subroutine protect_address(self, name, address, element, extents, status)
    class(checkpoint), intent(in) :: self
    character(len=*), intent(in) :: name
    type(c_ptr), intent(in) :: address
    integer(c_int), intent(in) :: element
    integer(c_int64_t), intent(in) :: extents(:)
    integer, intent(out), optional :: status
    call conclude(c_protect(self%app, trim(name)//c_null_char, address, element, size(extents, kind=c_int), extents, &
                            fortran_order), status)
  end subroutine

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
